import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import BudgetError
from blackbox.extras import MissingExtraError
from tasks import Progress
from tasks.configuration import Count
from tasks.errors import ConfigurationError
from tasks.methods.cma_es import LARGEST, CmaEs, ranked
from zo.errors import EvaluatorWarning, FailedQueriesError
from zo.estimators import Key

needs_cma = pytest.mark.needs("cma")


def linear(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 2, dtype=torch.float64)


def regression(rows=40):
    """Inputs, targets, and the weights and mean loss of the best linear map, by least squares."""
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 3, generator=draws, dtype=torch.float64)
    y = torch.randn(rows, 2, generator=draws, dtype=torch.float64)
    with_one = torch.cat([x, torch.ones(rows, 1, dtype=torch.float64)], dim=1)
    best = torch.linalg.lstsq(with_one, y).solution
    return x, y, best, float((with_one @ best - y).square().mean())


def squares(network, batch):
    x, y = batch
    return (network(x) - y).square().mean(dim=1)


def flat(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def take(search, batches):
    for batch in batches:
        search.backward(batch)
        search.move()


@needs_cma
def test_it_ends_at_the_minimum_of_a_quadratic():
    x, y, best, least = regression()
    network = linear()
    search = CmaEs(network, squares, sigma0=0.3, seed=1)
    take(search, [(x, y)] * 150)
    with torch.no_grad():
        found = float(squares(network, (x, y)).mean())
    assert torch.allclose(network.weight.T, best[:3], atol=1e-5) and torch.allclose(
        network.bias, best[3], atol=1e-5
    )
    assert found - least < 1e-9


@needs_cma
@pytest.mark.parametrize("diagonal", [False, True])
def test_it_is_what_the_package_gives_by_hand(diagonal):
    import cma

    def batches():
        return (
            torch.rand(7, 3, generator=Key(5, step).generator(), dtype=torch.float64) for step in range(12)
        )

    def objective(network, x):
        return (network(x).tanh() - x[:, :2]).square().sum(dim=1)

    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    other = copy.deepcopy(network)
    take(CmaEs(network, objective, sigma0=0.2, popsize=9, diagonal=diagonal, seed=4), batches())

    draws = np.random.default_rng(4)
    by_hand = cma.CMAEvolutionStrategy(
        flat(other).numpy(),
        0.2,
        {
            "popsize": 9,
            "CMA_diagonal": diagonal,
            "verbose": -9,
            "randn": lambda *shape: draws.standard_normal(shape),
        },
    )
    for x in batches():
        candidates, values = by_hand.ask(), []
        for candidate in candidates:
            torch.nn.utils.vector_to_parameters(torch.from_numpy(candidate), other.parameters())
            with torch.no_grad():
                values.append(float(objective(other, x).mean()))
        by_hand.tell(candidates, values)
    assert np.array_equal(flat(network).numpy(), by_hand.mean)


@needs_cma
def test_the_global_generators_are_neither_read_nor_moved():
    x, y, *_ = regression()
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        network = linear()
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        take(CmaEs(network, squares, sigma0=0.3, seed=1), [(x, y)] * 3)
        assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[1])
        found.append(flat(network))
    assert torch.equal(*found)


@needs_cma
def test_candidates_are_evaluated_together_and_every_evaluation_is_counted():
    x, y, *_ = regression(5)
    calls = []

    def objective(network, batch):
        calls.append(len(batch[0]))
        return squares(network, batch)

    search = CmaEs(linear(), objective, sigma0=0.3, popsize=8)
    take(search, [(x, y)] * 3)
    # the first of a generation alone, the others in one call; at steps 0 and 1 the first is among them too
    assert calls == [5, 8 * 5, 5, 8 * 5, 5, 7 * 5]
    assert search.counts.queries == sum(calls) / 5 == 3 * 8 + 2 and search.counts.checks == 2
    assert search.metrics()["rows"] == sum(calls)

    one_by_one = CmaEs(linear(), squares, sigma0=0.3, popsize=8, chunk=1)
    take(one_by_one, [(x, y)] * 3)
    assert one_by_one.counts.queries == 3 * 8
    assert torch.allclose(flat(search.network), flat(one_by_one.network), rtol=0, atol=1e-12)


@needs_cma
def test_a_weight_that_is_read_outside_of_its_layer_is_noticed():
    x, y, *_ = regression()

    def penalised(network, batch):
        return squares(network, batch) + 0.1 * network.weight.square().sum()

    network, other = linear(), linear()
    with pytest.warns(EvaluatorWarning, match="evaluated one by one"):
        take(CmaEs(network, penalised, sigma0=0.3, seed=1), [(x, y)] * 4)
    take(CmaEs(other, penalised, sigma0=0.3, seed=1, chunk=1), [(x, y)] * 4)
    assert torch.equal(flat(network), flat(other))


@needs_cma
def test_running_statistics_and_dropout_go_on_once_a_generation():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(), torch.nn.Linear(4, 2)
    )
    norm, x = network[1], torch.randn(6, 3)
    torch.manual_seed(5)
    masks = [torch.get_rng_state()]
    search = CmaEs(network, lambda network, x: network(x).square().mean(dim=1), sigma0=0.1)
    for _ in range(3):
        search.backward(x)
        search.move()
        masks.append(torch.get_rng_state())
    assert int(norm.num_batches_tracked) == 3
    assert not torch.equal(masks[1], masks[2]) and not torch.equal(masks[2], masks[3])
    assert search._stacks


def test_candidates_of_which_rows_failed_stand_behind_all_others():
    nan, inf = float("nan"), float("inf")
    found = torch.tensor(
        [[1.0, 3.0], [nan, 0.0], [0.5, inf], [9.0, 9.0], [nan, nan]],
        dtype=torch.float64,
    )
    values, failed = ranked(found)
    assert failed.tolist() == [False, True, True, False, True]
    assert values.isfinite().all() and values[0] == 2
    assert values.argsort().tolist() == [0, 3, 1, 2, 4]


@needs_cma
def test_the_loss_is_of_the_rows_that_came_back_where_each_candidate_lost_one():
    x, y, *_ = regression()
    lost = iter(range(40))

    def objective(network, batch):
        losses = squares(network, batch)
        losses[next(lost)] = float("nan")
        return losses

    search = CmaEs(linear(), objective, sigma0=1e-6, seed=1, chunk=1)
    candidates = int(search.state_dict()["told"].shape[1])
    each = squares(linear(), (x, y)).detach()
    means = [float(torch.cat([each[:row], each[row + 1 :]]).mean()) for row in range(candidates)]
    assert float(search.backward((x, y))) == pytest.approx(sorted(means)[(candidates - 1) // 2], rel=1e-4)
    assert search.counts.dropped == candidates and search.counts.lost == 0


class Walled(BlackBoxFunction):
    """Fails beyond a wall."""

    inputs = (ArraySpec("z", (2,)),)
    outputs = (ArraySpec("y", (2,)),)

    def evaluate(self, z):
        if z[0] > 0.3:
            raise ValueError("beyond the wall")
        return z


class Pushed(tasks.Problem):
    """The loss falls towards a wall, behind which rows fail."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("cma-es",)
        steps: Count = 25
        batch: Count = 4

    def box(self):
        return Walled(failures="keep")

    def network(self):
        return torch.nn.Linear(3, 2)

    def data(self):
        x = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) / 10
        return tasks.Data.split(x, batch=self.config.batch, validation=8, test=8)

    def objective(self, network, x):
        return (self.box(0.2 * network(x).tanh() - 0.1) - 0.35).square().sum(dim=1)


def go(problem, folder, **settings):
    return tasks.run(problem, runs=folder, progress=Progress(), **settings)


@needs_cma
def test_rows_are_counted_as_those_of_all_methods_and_a_budget_is_kept(tmp_path):
    run = go(Pushed(), tmp_path, steps=12)
    row = run.result.table[0]
    assert row.queries == 12 * (4 + int(3 * math.log(8))) + 3  # eight weights; steps 0, 1 and 10 are checked
    assert row.rows == row.queries * 4 and row.ledger["rows_run"] == row.rows
    with pytest.raises(ConfigurationError, match=r"budget of 300 rows.*No row was run"):
        go(Pushed(), tmp_path, rows=300, steps=12)


@needs_cma
def test_a_wall_is_kept_away_from(tmp_path):
    class Near(Pushed):
        def objective(self, network, x):
            return (self.box(0.5 * network(x).tanh()) - 0.35).square().sum(dim=1)

    run = go(Near(), tmp_path, methods=["none", "cma-es"])
    start, found = run.result.table
    assert found.ledger["rows_failed"] > 0 and found.extra["dropped queries"] > 0
    assert found.value is not None and start.value is not None and found.value < start.value


@needs_cma
def test_a_batch_without_a_loss_is_refused_and_changes_nothing():
    network = linear()
    before = flat(network)
    search = CmaEs(network, squares, sigma0=0.3, seed=1)
    x, y, *_ = regression()
    with pytest.raises(FailedQueriesError, match="finite loss"):
        search.backward((x, y * float("nan")))
    search.move()
    assert torch.equal(flat(network), before)
    take(search, [(x, y)] * 3)
    again = CmaEs(linear(), squares, sigma0=0.3, seed=1)
    again.load_state_dict(search.state_dict())
    assert np.array_equal(again.mean, search.mean)
    for one in (search, again):
        take(one, [(x, y)])
    assert np.array_equal(again.mean, search.mean)


@needs_cma
def test_a_row_that_fails_in_all_candidates_is_left_out():
    x, y, *_ = regression()
    lame = y.clone()
    lame[3] = float("nan")
    keep = torch.arange(len(x)) != 3
    network, other = linear(), linear()
    search = CmaEs(network, squares, sigma0=0.3, seed=1)
    take(search, [(x, lame)] * 4)
    take(CmaEs(other, squares, sigma0=0.3, seed=1), [(x[keep], y[keep])] * 4)
    assert torch.allclose(flat(network), flat(other), atol=1e-12)
    assert search.counts.lost == 4 and search.counts.dropped == 0


@needs_cma
def test_a_state_of_other_settings_is_refused():
    state = CmaEs(linear(), squares, sigma0=0.3, seed=1).state_dict()
    state["told"] = torch.rand(3, 10, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match="settings and the version of cma"):
        CmaEs(linear(), squares, sigma0=0.2, seed=1).load_state_dict(state)


@needs_cma
def test_a_network_too_large_for_a_covariance_is_refused_and_a_diagonal_takes_it(tmp_path):
    class Large(Pushed):
        def network(self):
            return torch.nn.Sequential(torch.nn.Linear(3, LARGEST // 3), torch.nn.Linear(LARGEST // 3, 2))

    with pytest.raises(ConfigurationError, match=r"at most 3,000 weights.*got 6,002.*sep-cma-es"):
        go(Large(), tmp_path)
    assert go(Large(), tmp_path, methods=["sep-cma-es"], steps=2).result.table[0].value is not None


def test_without_the_package_the_message_says_how_to_install_it(tmp_path):
    with pytest.raises(MissingExtraError, match=r"blackbox-coupling\[cma\]"):
        go(Pushed(), tmp_path)


@needs_cma
def test_a_budget_that_ends_in_a_generation_is_an_error():
    from blackbox.wrappers import Budgeted

    box = Budgeted(Walled(failures="keep"), rows=20)
    search = CmaEs(torch.nn.Linear(3, 2), lambda network, x: box(network(x) / 10).sum(dim=1), 0.1, popsize=8)
    with pytest.raises(BudgetError):
        search.backward(torch.rand(4, 3))
