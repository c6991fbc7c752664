"""`Population`: several rates for the rows of one training, judged by each window."""

import io
import math
import warnings
from contextlib import nullcontext
from statistics import fmean

import pytest
import torch

import zo
from blackbox.errors import BudgetError, RowFailedError
from tests.judged import gathered
from tests.zo.populations import TARGET, Square, advance, batch, loss_of, made, of_member, weights
from zo.tangents import ModelTangent
from zo.tangents.population.members import Member, clearly_above


def test_members_are_trainings_with_their_rates(monkeypatch):
    """With the true derivative a replay is the loss itself: each member is a plain training by autograd."""
    population, gradient, optimizer = made(replays=0, factors=(1, 4), adam=torch.optim.SGD, rate=1e-2)
    replays, replay = gradient.replays, gradient.replay
    monkeypatch.setattr(gradient, "replays", lambda: replays() + 1)  # one, of the window just recorded
    monkeypatch.setattr(gradient, "replay", lambda last=False: replay(last=True))
    others = {}
    for factor in (1, 4):
        torch.manual_seed(0)
        others[factor] = torch.nn.Linear(3, 4).double()
    for number in range(3):
        population.step(batch(number))
        for factor, network in others.items():
            for _ in range(2):
                network.zero_grad()
                loss_of(network, batch(number)).backward()
                with torch.no_grad():
                    for weight in network.parameters():
                        weight -= 1e-2 * factor * weight.grad
    assert population.copies == 0 and population.factor == 1
    assert torch.allclose(weights(gradient.network), weights(others[1]), rtol=1e-12)
    assert torch.allclose(of_member(population, 1), weights(others[4]), rtol=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2]


def test_rows_are_those_of_one_training_and_the_best_rate_leads():
    population, gradient, _ = made(factors=(1e-6, 1, 30))
    assert population.factor == 1
    for number in range(12):
        population.step(batch(number))
    assert gradient.boxes[0].ledger.rows_run == 12 * 2
    assert population.factor == 30
    assert population.metrics() == {
        **{"rate_factor": 30.0, "rate_copies": float(population.copies)},
        **{"surrogate_leads": 0.0, "surrogate_updates": 0.0},
    }


def test_a_rate_that_diverges_goes_on_from_the_leader_and_does_not_lead():
    population, gradient, _ = made(factors=(1, 1e6), rate=1e-2)
    first = float(loss_of(gradient.network, batch(99)).detach())
    for number in range(8):
        population.step(batch(number))
    assert population.copies >= 2 and population.factor == 1
    assert float(loss_of(gradient.network, batch(99)).detach()) < first


def member(*losses, factor=1.0):
    return Member(factor, losses=list(losses))


def test_another_s_losses_are_clearly_lower_on_the_same_windows():
    """By the mean of the logarithms' differences in two of their standard errors, of three windows."""
    hard, easy = [7.0, 0.05, 3.0], [4.0, 0.03, 1.4]
    assert clearly_above(hard, easy) and not clearly_above(
        easy, hard
    )  # windows differ by more than these two
    assert not clearly_above(hard, easy, times=2.0) and clearly_above(hard, [2.0, 0.02, 1.0], times=2.0)
    assert not clearly_above([7.0, 0.05], [4.0, 0.03])
    assert not clearly_above(hard, [9.0, 0.03, 0.3])  # lower on two of three windows, higher in the mean
    assert not clearly_above(hard, [0.1, 0.3, 2.9])  # lower in the mean, by one window
    assert clearly_above([math.inf], [1.0])
    assert not clearly_above([1.0, 1.0, 1.0], [0.0, math.inf, 0.0])


def test_a_faster_one_leads_where_it_is_clearly_lower_and_a_slower_one_in_any_doubt():
    slow, fast = member(7.0, 0.05, 3.0), member(9.0, 0.04, 1.5, factor=4.0)
    assert not fast.takes_over_from(slow) and fast.loss > slow.loss
    assert slow.takes_over_from(fast)  # by the mean alone
    assert member(4.0, 0.03, 1.4, factor=4.0).takes_over_from(slow)


def test_where_no_replay_is_trusted_a_slower_one_leads(monkeypatch):
    population, gradient, _ = made(factors=(1, 4, 16))
    for number in range(6):
        population.step(batch(number))
    assert population.factor == 16
    monkeypatch.setattr(gradient, "replays", lambda: 0)
    for number, factor in ((6, 4), (7, 1), (8, 1)):
        population.step(batch(number))
        assert population.factor == factor


def test_without_replays_one_trains_alone_at_its_own_rate():
    population, gradient, _ = made(factors=(0.25, 1, 4), replays=0)
    alone, other, _ = made(factors=(1,), replays=0)
    for number in range(3):
        population.step(batch(number))
        alone.step(batch(number))
    assert population.factor == 1 and torch.equal(weights(gradient.network), weights(other.network))


def test_a_slower_one_never_takes_over_the_leader_s_weights():
    """It is what the population goes back to."""
    population, gradient, _ = made(factors=(1e-6, 1), rate=3e-2)
    began = weights(gradient.network)
    for number in range(12):
        population.step(batch(number))
    slow, leader = population.state_dict()["members"]
    assert population.factor == 1 and population.copies == 0
    assert fmean(slow["losses"]) > 2 * fmean(leader["losses"])
    assert torch.allclose(of_member(population, 0), began, atol=1e-5)


@pytest.mark.parametrize(
    "tangent", [pytest.param(zo.tangents.MLPTangent, marks=pytest.mark.slow), lambda: ModelTangent(advance)]
)
def test_it_goes_on_from_a_checkpoint_to_the_bit(tangent):
    """After a change of leader and a copy, where the tangent is exact; with the last window of a model."""

    def begun():
        return made(tangent(), replays=2, factors=(1e-6, 1, 1e6), rate=3e-2)

    def after(made, numbers):
        for number in numbers:
            made[0].step(batch(number))
        return made

    whole, half = after(begun(), range(9)), after(begun(), range(6))
    parts = {"network": half[1].network, "optimizer": half[2], "gradient": half[1], "population": half[0]}
    buffer = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    torch.manual_seed(5)
    again = begun()
    parts = {"network": again[1].network, "optimizer": again[2], "gradient": again[1], "population": again[0]}
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    loaded = again[0].metrics()
    assert loaded == half[0].metrics() and loaded["rate_copies"] > 0
    for other in (after(half, range(6, 9)), after(again, range(6, 9))):
        assert torch.equal(weights(other[1].network), weights(whole[1].network))
        assert other[0].metrics() == whole[0].metrics()
        assert torch.equal(of_member(other[0], 2), of_member(whole[0], 2))
        assert other[1].metrics() == whole[1].metrics()
    with pytest.raises(
        zo.errors.ConfigurationError, match=r"factors=\[1.0, 2.0\], got one with \[1e-06, 1.0, 1000000.0\]"
    ):
        made(factors=(1, 2))[0].load_state_dict(saved["population"])


def test_a_stage_that_is_loaded_keeps_the_best_weights():
    """A state is put back into the population alone: the network has its own."""
    population, gradient, _ = made()
    population.step(batch(0))
    state, best = population.state_dict(), weights(gradient.network) + 1
    torch.nn.utils.vector_to_parameters(best, gradient.network.parameters())
    population.load_state_dict(state)
    assert torch.equal(weights(gradient.network), best)


@pytest.mark.parametrize("in_place", [True, False])
def test_each_member_has_buffers_of_its_own(in_place):
    """Beside a network that trains alone at the same rate, by the true derivative."""

    class Centred(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 4).double()
            self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

        def forward(self, x):
            out = self.linear(x) - self.mean
            new = 0.5 * self.mean + 0.5 * out.detach().mean(dim=0)
            if in_place:
                self.mean.copy_(new)
            else:
                self.mean = new
            return out

    def of(factors):
        torch.manual_seed(0)
        network, box = Centred(), Square()
        gradient = zo.TangentGradient(
            network,
            lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
            boxes=[box],
            tangent=ModelTangent(advance),
            limits=zo.tangents.Limits(check_every=None, replays=2, clip=None),
        )
        population = zo.Population(
            gradient, torch.optim.Adam(network.parameters(), lr=1e-4), factors=factors, surrogate=False
        )
        for number in range(2):  # too few for another to lead
            population.step(batch(number))
        return network

    among, alone = of((1, 4, 16)), of((1,))
    assert torch.equal(among.mean, alone.mean) and bool(among.mean.any())
    assert torch.equal(weights(among), weights(alone))


def moments_of(network, optimizer):
    return torch.cat([optimizer.state[weight]["exp_avg"].flatten() for weight in network.parameters()])


def by_hand(replays):
    """A network and the moments of its optimiser, behind steps that so many replays follow each."""
    _, gradient, optimizer = made()
    for number, count in enumerate(replays):
        optimizer.zero_grad()
        gradient.backward(batch(number))
        optimizer.step()
        assert gradient.replays() == 2
        for _ in range(count):
            optimizer.zero_grad()
            gradient.replay()
            optimizer.step()
    return gradient.network, moments_of(gradient.network, optimizer)


def test_wherever_it_is_interrupted_the_network_is_the_leader_s(monkeypatch):
    """And the optimiser's moments are those of the same steps."""

    def interrupt(number):
        population, gradient, optimizer = made()
        population.step(batch(0))
        left, replay = number, gradient.replay

        def broken(*args, **settings):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return replay(*args, **settings)

        monkeypatch.setattr(gradient, "replay", broken)
        with pytest.raises(KeyboardInterrupt):
            population.step(batch(1))
        return population, gradient, optimizer

    for number in range(8):  # two judge the window, and three members replay twice
        population, gradient, optimizer = interrupt(number)
        now = weights(gradient.network)
        for other in (1, 2):
            assert not torch.equal(now, of_member(population, other))
        assert torch.equal(now, weights(gradient.network))
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3]
        alone, moments = by_hand((2, max(0, number - 6)))  # with the leader's replays, which are the last
        assert torch.equal(now, weights(alone))
        assert torch.equal(moments_of(gradient.network, optimizer), moments)


def leaving_its_domain(error):
    """A population whose faster member gets to weights at which the objective raises, and its network."""
    torch.manual_seed(0)
    network, box = torch.nn.Linear(3, 4).double(), Square()

    def objective(net, x):
        if float(net.weight.detach().abs().max()) > 1.5:
            raise error
        return (box(net(x)) - TARGET).square().sum(dim=1)

    gradient = zo.TangentGradient(
        network,
        objective,
        boxes=[box],
        tangent=ModelTangent(advance),
        limits=zo.tangents.Limits(replays=2),
        seed=0,
    )
    return zo.Population(
        gradient, torch.optim.Adam(network.parameters(), lr=3e-2), factors=(1, 100), surrogate=False
    ), network


def test_a_member_that_leaves_the_objective_s_domain_ends_no_training():
    population, network = leaving_its_domain(ValueError("left the domain"))
    words = "at 100 times the learning rate the objective raised ValueError"
    with pytest.warns(zo.TangentWarning, match=words) as said:
        for number in range(8):
            population.step(batch(number))
    assert sum("raised" in str(each.message) for each in said) == 1
    assert population.factor == 1 and population.copies > 0
    assert float(loss_of(network, batch(99)).detach()) < 2.0


@pytest.mark.parametrize("offset, told", [(100.0, 1), (0.0, 0)])
def test_losses_below_zero_are_told_once(offset, told):
    torch.manual_seed(0)
    network, box = torch.nn.Linear(3, 4).double(), Square()
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1) - offset,
        boxes=[box],
        tangent=ModelTangent(advance),
        seed=0,
    )
    population = zo.Population(gradient, torch.optim.Adam(network.parameters(), lr=1e-3), surrogate=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(4):
            population.step(batch(number))
    assert sum("expected losses above 0" in str(each.message) for each in said) == told


@pytest.mark.parametrize("error", [BudgetError("spent"), MemoryError("full")])
def test_a_budget_that_is_spent_ends_a_step_whosever_it_is(error):
    """That of another box, which replays ask too."""
    population, network = leaving_its_domain(error)
    with pytest.raises(type(error)):
        for number in range(8):
            population.step(batch(number))
    assert float(network.weight.detach().abs().max()) < 1.5  # the leader's


@pytest.mark.parametrize("failures", ["raise", "keep"])
def test_where_the_box_fails_no_member_moves(failures):
    class Broken(Square):
        def evaluate_rows(self, x):
            return torch.full_like(x, math.nan)

    population, gradient, _ = made(box=Broken(failures=failures))
    before = weights(gradient.network)
    with pytest.raises((RowFailedError, zo.FailedBatchError)):
        population.step(batch(0))
    assert not any(part["losses"] for part in population.state_dict()["members"])
    for now in (weights(gradient.network), of_member(population, 1), of_member(population, 2)):
        assert torch.equal(now, before)


@pytest.mark.parametrize("factors", [(), (1, 1), (0, 1), (-1,), (math.nan,)])
def test_factors_that_are_none_are_refused(factors):
    with pytest.raises(zo.errors.ConfigurationError, match="factors"):
        made(factors=factors)


def test_an_optimiser_of_other_weights_is_refused():
    _, gradient, _ = made()
    other = torch.nn.Linear(1, 1)
    weights = [*gradient.network.parameters(), *other.parameters()]
    with pytest.raises(zo.errors.ConfigurationError, match="weights of the gradient's network"):
        zo.Population(gradient, torch.optim.Adam(weights))


def test_an_optimiser_that_needs_a_closure_is_refused():
    _, gradient, _ = made()
    with pytest.raises(zo.errors.ConfigurationError, match="LBFGS, which needs a closure"):
        zo.Population(gradient, torch.optim.LBFGS(gradient.network.parameters()))


def test_an_optimiser_without_some_of_the_trained_weights_is_refused():
    """A second one's steps would be lost where another member leads."""
    _, gradient, _ = made()
    first = next(iter(gradient.network.parameters()))
    with pytest.raises(
        zo.errors.ConfigurationError, match="all weights that the gradient trains, got one without"
    ):
        zo.Population(gradient, torch.optim.Adam([first]))


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, as schedule-free optimisers do."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return super().step(closure)


def test_an_optimiser_that_counts_in_its_groups_is_refused_in_the_first_step():
    """All members would share its count."""
    _, gradient, _ = made()
    population = zo.Population(gradient, Counting(gradient.network.parameters(), lr=1e-3))
    with pytest.raises(zo.errors.ConfigurationError, match="Counting, whose step changes 'k' of its groups"):
        population.step(batch(0))


@pytest.mark.parametrize("writes", [False, True])
def test_draws_that_members_share_are_those_that_each_makes(writes):
    """To the bit, also of an objective that writes to its batch; a step within forgets what is shared."""

    def gradients(shares):
        torch.manual_seed(0)
        network, box = torch.nn.Linear(3, 4).double(), Square()

        def objective(net, x):
            if replaying:
                x.add_(0.5)
            return (box(net(x)) - TARGET).square().sum(dim=1)

        replaying = False

        settings = gathered(clip=None, replays=2, check_every=None)
        gradient = zo.TangentGradient(
            network, objective, boxes=[box], tangent=zo.tangents.LinearTangent(), **settings
        )
        for number in range(4):
            gradient.backward(batch(number))
            gradient.replays()
        found, replaying = [], writes
        with gradient.sharing() if shares else nullcontext():
            for _ in range(2):
                with gradient.aside():
                    for last in (False, False, True):
                        network.zero_grad()
                        gradient.replay(last=last)
                        found.append(torch.cat([w.grad.flatten() for w in network.parameters()]))
            network.zero_grad()
            replaying = False
            gradient.backward(batch(9))
            for last in (False, True):
                network.zero_grad()
                gradient.replay(last=last)
                found.append(torch.cat([w.grad.flatten() for w in network.parameters()]))
        return found

    shared, alone = gradients(True), gradients(False)
    assert all(map(torch.equal, shared[:3], shared[3:6]))
    assert not torch.equal(shared[0], shared[1])
    if not writes:
        assert all(map(torch.equal, shared, alone))
