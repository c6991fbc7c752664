"""Failed rows and queries: the gradient is the one of what survived, to the bit, or an error."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.boxes import Sine
from tests.zo.linearised import Instead
from tests.zo.row_boxes import FromTorch
from zo.failed_rows import refuse_too_many
from zo.tangents import CallPairs
from zo.tangents.evidence.outliers import Outliers
from zo.tangents.evidence.predictions import predict_and_learn, relative_error
from zo.tangents.record.units import Units

NAN = float("nan")


class Sabotaged:
    """The objective below, with a row lost where a certain weight, and no other, was moved that way."""

    def __init__(self, network: nn.Module, lost: dict[tuple[int, int], int]) -> None:
        self.base, self.lost = self.flat(network), lost

    @staticmethod
    def flat(network: nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()

    def __call__(self, network, batch):
        losses, moved = objective(network, batch), self.flat(network) - self.base
        for (weight, sign), row in self.lost.items():
            if moved[weight] * sign > 0 and moved.count_nonzero() == 1 and moved[weight].abs() < 1e-3:
                losses[row] = NAN  # at the step of mu alone, which is shorter than those of checks
        return losses


def objective(network, batch):
    x, lost = batch
    return network(x).square().mean(dim=1) + torch.where(lost, NAN, 0.0)


def gradient_of(network, estimator, batch, objective=objective, **settings) -> torch.Tensor:
    network.zero_grad()
    zo.LossGradient(network, objective, estimator, evaluator="loop", **settings).backward(batch)
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 3).double(), torch.zeros(6, dtype=torch.bool)


@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
@pytest.mark.parametrize("estimator", [zo.CGE(1e-4), zo.RGE(1e-4, q=5)], ids=["cge", "rge"])
def test_rows_lost_in_the_base_leave_the_gradient_of_the_other_rows(network, batch, estimator):
    x, lost = batch
    lost[[1, 4]] = True
    grad = gradient_of(network, estimator, (x, lost))
    alone = gradient_of(network, estimator, (x[~lost], lost[~lost]))
    # A batch of four rows and one of six may be rounded differently by the matrix product.
    assert torch.allclose(grad, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_a_lost_coordinate_is_zero_and_all_others_are_what_they_were_to_the_bit(network, batch, scheme):
    estimator = zo.CGE(1e-4, central=scheme != "forward")
    whole = gradient_of(network, estimator, batch)
    lost = {(3, 1): 2, (7, 1): 0} | ({(3, -1): 2, (7, -1): 1} if estimator.central else {})
    sabotaged = Sabotaged(network, lost)
    grad = gradient_of(network, estimator, batch, sabotaged)
    expected = whole.clone()
    expected[[3, 7]] = 0
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("side", [1, -1])
def test_a_central_coordinate_is_the_difference_of_the_side_that_is_left(network, batch, side):
    estimator = zo.CGE(1e-4, central=True)
    grad = gradient_of(network, estimator, batch, Sabotaged(network, {(5, side): 1}))
    expected = gradient_of(network, estimator, batch)
    base = Sabotaged.flat(network)
    moved = base.clone()
    moved[5] -= side * 1e-4
    with torch.no_grad():
        zeroth = objective(network, batch).mean()
        nn.utils.vector_to_parameters(moved, network.parameters())
        one_sided = (zeroth - objective(network, batch).mean()) / (base - moved)[5]
    assert grad[5] == pytest.approx(float(one_sided), rel=1e-9)
    others = torch.arange(len(grad)) != 5
    assert torch.equal(grad[others], expected[others])


class Walled(nn.Module):
    """Twenty sizes, of which one stands at the end of what a box answers."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.sizes = nn.Parameter(torch.linspace(0.1, 1, 20, dtype=torch.float64))
        self.sizes.data[3] = edge

    def forward(self, rows):
        return self.sizes[rows][:, None]


def walled(estimator, edge: float, steps: int, **settings):
    """Training for some steps, of which the third size's queries leave 0 to 2; and what was said."""
    network, rows = Walled(edge), torch.arange(20)
    solver = FromTorch(
        lambda x: torch.where((x > 0) & (x < 2), 3 * x + x.sin(), NAN),
        (ArraySpec("x", (1,)),),
        (ArraySpec("y", (1,)),),
    )
    gradient = zo.LossGradient(
        network, lambda network, rows: (solver(network(rows)) - 5).square().mean(dim=1), estimator, **settings
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.zero_grad()
            gradient.backward(rows)
            optimizer.step()
    return network.sizes.detach(), [str(warning.message) for warning in said]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("edge", [5e-4, 2 - 5e-4])
@pytest.mark.parametrize("settings", [{}, {"sparsity": zo.RandomCoordinates(10)}], ids=["all", "sparse"])
def test_a_weight_at_the_edge_of_a_box_is_trained_with_central_differences(edge, settings):
    sizes, said = walled(zo.CGE(1e-3, central=True, **settings), edge, 60)
    assert (sizes[3] - edge) * (1 - edge) > 0.1 * (1 - edge) ** 2  # towards 1.6, where the loss is zero
    assert not said


def test_a_weight_that_forward_queries_never_answer_is_said_once_with_its_name():
    sizes, said = walled(zo.CGE(1e-3), 2 - 5e-4, 25)
    assert sizes[3] == 2 - 5e-4
    (warning,) = said
    assert "weight 3 of the flat parameters, in 'sizes'" in warning and "central=True" in warning


def test_queries_that_fail_elsewhere_each_time_are_no_edge(network, batch):
    gradient = zo.LossGradient(network, Sabotaged(network, {}), zo.CGE(1e-4), evaluator="loop")
    with warnings.catch_warnings():
        warnings.simplefilter("error", zo.errors.ZeroGradientWarning)
        for step in range(30):
            gradient.objective.lost = {(step % 5, 1): 2}
            gradient.backward(batch)
    assert gradient.counts.dropped > 0  # some failed, so there was something to say


@pytest.mark.parametrize("central", [False, True])
def test_rge_is_the_mean_over_the_directions_that_remain(network, batch, central):
    q = 5
    estimator = zo.RGE(1e-4, q=q, central=central)
    parameters = zo.estimators.Parameters(network)
    plan = estimator.plan(parameters, zo.estimators.Key(0))
    steps = plan.chunk(0, plan.queries).steps
    base = Sabotaged.flat(network)

    def losing(network, batch):  # direction 2, in central differences the way back of it alone
        losses, moved = objective(network, batch), Sabotaged.flat(network) - base
        if torch.allclose(moved, steps[5 if central else 2], rtol=0, atol=1e-12):
            losses[1] = NAN
        return losses

    grad = gradient_of(network, estimator, batch, losing, max_dropped=0.5)
    zeroth = objective(network, batch).mean()
    changes = []
    for step in steps:
        with torch.no_grad():
            nn.utils.vector_to_parameters(base + step, network.parameters())
            changes.append(objective(network, batch).mean() - zeroth)
    expected = torch.zeros(parameters.size, dtype=torch.float64)
    directions = steps[:: plan.queries // q] / 1e-4
    for i in range(q):
        if central:  # of direction 2 the way there is left
            slope = changes[2 * i] if i == 2 else (changes[2 * i] - changes[2 * i + 1]) / 2
            expected += slope.detach() / 1e-4 * directions[i] / q
        elif i != 2:
            expected += changes[i].detach() / 1e-4 * directions[i] / (q - 1)
    assert torch.allclose(grad, expected, rtol=1e-6, atol=1e-9)


def test_a_box_that_keeps_failures_costs_queries_not_the_step():
    torch.manual_seed(0)
    network, box = nn.Linear(4, 4).double(), Sine(limit=2.0)

    def through(network, batch):
        return box(batch + network(batch)).square().mean(dim=1)

    x = torch.zeros(3, 4).double()
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.1, 0.2, 1.9995, 0.3]))  # a step of 1e-3 takes the third over
    gradient = zo.LossGradient(network, through, zo.CGE(1e-3), evaluator=zo.evaluators.Stacked())
    gradient.backward(x)
    assert gradient.counts.dropped == 1
    assert network.bias.grad[2] == 0
    assert box.ledger.rows_failed == 3
    expected = 2 * torch.sin(1.3 * network.bias) * 1.3 * torch.cos(1.3 * network.bias) / 4
    others = torch.tensor([0, 1, 3])
    assert torch.allclose(network.bias.grad[others], expected.detach()[others], atol=2e-3)


@pytest.mark.parametrize("where", ["base", "queries"])
def test_too_many_failures_are_an_error_and_grad_is_untouched(network, batch, where):
    x, lost = batch
    lost[:] = where == "base"
    failing = Sabotaged(network, {(weight, 1): 0 for weight in range(4)})
    gradient = zo.LossGradient(network, failing, zo.CGE(1e-4), evaluator="loop")
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(zo.errors.FailedQueriesError, match="Step 1"):
        gradient.backward((x, lost))
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


def test_a_step_with_too_many_failures_leaves_buffers_and_generators_as_they_were(batch):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    failing = Sabotaged(network, {(weight, 1): 0 for weight in range(4)})
    gradient = zo.LossGradient(network, failing, zo.CGE(1e-4), evaluator="loop")
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    generator = torch.get_rng_state()
    with pytest.raises(zo.errors.FailedQueriesError, match="4 did"):
        gradient.backward(batch)
    assert all(torch.equal(network.get_buffer(name), old) for name, old in buffers.items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("most", "failed", "queries", "refused"),
    [
        (0.1, 1, 5, False), (0.1, 2, 5, True), (0.1, 2, 20, False), (0.1, 3, 20, True), (0.0, 1, 20, True),
        (1.0, 4, 5, False), (1.0, 5, 5, True), (0.1, 1, 1, True),
    ],
)  # fmt: skip
def test_one_query_alone_may_fail_and_else_a_fraction(most, failed, queries, refused):
    valid = torch.arange(queries) >= failed
    with pytest.raises(zo.errors.FailedQueriesError) if refused else nullcontext():
        refuse_too_many(valid, most, 3)


def objective_with_nan(network, batch):
    """NaN of its own in the rows whose second number is above 1."""
    loss = (network(batch) - batch[:, 1:2]).square().mean(dim=1)
    return torch.where(batch[:, 1] > 1, torch.nan, loss)


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (torch.nan, ["20 of 32 (62%: 0, 1, 2, 3, 4, ...)", "other 12 rows", "not finite in 20 of these"]),
        (2.0, ["20 of 32", "no black box failed", "The batch is finite there"]),
    ],
    ids=["in the batch", "of the objective"],
)
def test_rows_without_a_finite_loss_are_told_once_and_counted(spoilt, words, evaluator):
    torch.manual_seed(0)
    network, batch = nn.Linear(4, 1), torch.randn(32, 4).clamp(max=1)
    batch[:20, 1] = spoilt
    gradient = zo.LossGradient(network, objective_with_nan, zo.CGE(1e-3, central=True), evaluator=evaluator)
    with pytest.warns(zo.errors.LostRowsWarning) as said:
        for _ in range(3):
            network.zero_grad()
            gradient.backward(batch)
    (message,) = [str(warning.message) for warning in said if warning.category is zo.errors.LostRowsWarning]
    for word in words:
        assert word in message
    assert gradient.counts.lost == gradient.metrics()["lost"] == 60
    grad = network.weight.grad.clone()
    truth = torch.autograd.grad(objective_with_nan(network, batch[20:]).mean(), network.weight)[0]
    assert torch.allclose(grad, truth, atol=1e-3)


def test_rows_that_a_black_box_lost_are_counted_and_its_ledger_says_why():
    """No word beside the ledger's; but of rows that were not finite before the box there is one."""
    box, network = Sine(limit=1.5), nn.Linear(4, 4)
    batch = torch.randn(8, 4)

    def objective(network, batch):
        return box(batch + 0 * network(batch.nan_to_num())).square().mean(dim=1)

    for spoilt, warned in ((4.0, 0), (torch.nan, 1)):
        gradient = zo.LossGradient(network, objective, zo.CGE(1e-3))
        spoilt_batch = batch.clamp(max=1)
        spoilt_batch[0] = spoilt
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            gradient.backward(spoilt_batch)
        assert [warning.category for warning in said].count(zo.errors.LostRowsWarning) == warned
        assert gradient.counts.lost == 1


def test_tangents_tell_of_rows_without_a_finite_loss():
    torch.manual_seed(0)
    box, network = Sine(), nn.Linear(4, 4)

    def objective(network, batch):
        return box(network(batch[:, :4])).square().mean(dim=1) * batch[:, 4]

    batch = torch.randn(32, 5)
    batch[:3, 4] = torch.nan
    gradient = zo.TangentGradient(network, objective, boxes=[box])
    with pytest.warns(zo.errors.LostRowsWarning, match="in 3 of 32 .9%: 0, 1, 2."):
        gradient.backward(batch)
    assert gradient.counts.lost == 3 and all(p.grad.isfinite().all() for p in network.parameters())


def test_a_row_that_a_dither_took_beyond_what_the_box_gives_is_told_so():
    """The answers are never below zero; without the response to a dither they may be."""
    masses = FromTorch(
        lambda load, used: (load.square() * used).sum(dim=1),
        inputs=(ArraySpec("load", (3,)), ArraySpec("used", (3,))),
        outputs=(ArraySpec("mass", ()),),
    )
    torch.manual_seed(0)
    network, used = nn.Linear(1, 3), (torch.rand(16, 3) > 0.3).float()
    used[0] = 0.0

    def objective(network, used):
        return (masses(network(torch.ones(len(used), 1)), used) + 1e-6).sqrt()

    gradient = zo.TangentGradient(network, objective, boxes=[masses], seed=0)
    with pytest.warns(zo.errors.LostRowsWarning, match="Inputs of a box were dithered.*clamp"):
        for _ in range(6):
            gradient.backward(used)


def test_tangents_tell_once_of_many_rows_that_a_box_lost():
    torch.manual_seed(0)
    box, network = Sine(limit=1.5), nn.Linear(4, 4)

    def objective(network, batch):
        return box(batch + 0.1 * network(batch.clamp(-1, 1))).square().mean(dim=1)

    batch = 0.1 * torch.randn(8, 4)
    gradient = zo.TangentGradient(network, objective, boxes=[box])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(8):
            batch[:3] = 4.0  # beyond what the box takes
            gradient.backward(batch)
            count = [warning.category for warning in said].count(zo.errors.LostRowsWarning)
            assert count == (step >= 3)  # once, when it is ten rows
    (message,) = [str(warning.message) for warning in said if warning.category is zo.errors.LostRowsWarning]
    assert "12 of 32 rows so far (38%)" in message and "The first cause: " in message


@pytest.mark.parametrize("calls", [1, 2])
def test_the_error_of_rows_that_are_the_same_is_measured_by_the_step_of_the_box(calls):
    """They have no spread: 3 of an error over 2 of a step, in each number."""

    class Guess(zo.tangents.ZeroTangent):
        def at(self, rows):
            return Instead(super().at(rows), values=lambda _: rows.z + 5.0)

    state = (ArraySpec("x", (4,)),)
    z, alive = torch.ones(2, 4), torch.ones(2, dtype=torch.bool)
    pairs = CallPairs(state, state, z, z + 2.0, alive, response_scale=torch.ones(4))
    _, squares, _ = predict_and_learn(Guess(), [pairs] * calls, Units(), Outliers(), len(z))
    assert relative_error(squares) == pytest.approx(1.5)
