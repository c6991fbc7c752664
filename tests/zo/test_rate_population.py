"""`RatePopulation`: several rates for the rows of one training, judged by each window."""

import io
import math
from collections import defaultdict
from statistics import fmean

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction, RowFailedError
from zo.tangents import ModelTangent
from zo.tangents.population import _Member

TARGET = torch.linspace(-1, 1, 4, dtype=torch.float64)


class Square(BlackBoxFunction):
    """x + x^2 / 4, of each number."""

    arrays = "torch"
    inputs = outputs = (ArraySpec("x", (4,), "float64"),)

    def evaluate_rows(self, x):
        return advance(x)


def advance(x):
    return x + x.square() / 4


def made(tangent=None, factors=(1, 4, 16), rate=1e-3, adam=torch.optim.Adam, box=None, **settings):
    """A population of a small network, by default with the box's own derivative."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 4).double()
    box = Square() if box is None else box
    tangent = ModelTangent(advance) if tangent is None else tangent
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
        boxes=[box],
        tangent=tangent,
        **{"clip": None, "replays": 2, "trust_policy": zo.TrustPolicy(check_every=None), **settings},
    )
    optimizer = adam(network.parameters(), lr=rate)
    return zo.RatePopulation(gradient, optimizer, factors), gradient, optimizer


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(2, 3, generator=generator, dtype=torch.float64)


def loss_of(network, x):
    return (advance(network(x)) - TARGET).square().sum(dim=1).mean()


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_members_are_trainings_with_their_rates():
    """With the true derivative a replay is the loss itself: each member is a plain training by autograd."""
    population, gradient, optimizer = made(replays=0, factors=(1, 4), adam=torch.optim.SGD, rate=1e-2)
    gradient.replays = lambda given=gradient.replays: given() + 1  # one, of the window just recorded
    gradient.replay = lambda last=False, replay=gradient.replay: replay(last=True)
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
    fast = population.state_dict()["members"][1]["weights"]
    assert torch.allclose(torch.cat([w.flatten() for w in fast]), weights(others[4]), rtol=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2]


def test_rows_are_those_of_one_training_and_the_best_rate_leads():
    population, gradient, _ = made(factors=(1e-6, 1, 30))
    assert population.factor == 1
    for number in range(12):
        population.step(batch(number))
    assert gradient.boxes[0].ledger.rows_run == 12 * 2
    assert population.factor == 30
    assert population.metrics() == {"rate_factor": 30.0, "rate_copies": float(population.copies)}


def test_a_rate_that_diverges_goes_on_from_the_leader_and_does_not_lead():
    population, gradient, _ = made(factors=(1, 1e6), rate=1e-2)
    first = float(loss_of(gradient.network, batch(99)).detach())
    for number in range(8):
        population.step(batch(number))
    assert population.copies >= 2 and population.factor == 1
    assert float(loss_of(gradient.network, batch(99)).detach()) < first


def member(*losses, factor=1.0):
    return _Member(factor, [], defaultdict(dict), list(losses))


def test_another_s_losses_are_clearly_lower_on_the_same_windows():
    """By the mean of the logarithms' differences in two of their standard errors, of three windows."""
    hard, easy = member(7.0, 0.05, 3.0), member(4.0, 0.03, 1.4)
    assert hard.above(easy) and not easy.above(hard)  # windows differ by more than these two
    assert not hard.above(easy, times=2.0) and hard.above(member(2.0, 0.02, 1.0), times=2.0)
    assert not member(7.0, 0.05).above(member(4.0, 0.03))
    assert not hard.above(member(9.0, 0.03, 0.3))  # lower on two of three windows, higher in the mean
    assert not hard.above(member(0.1, 0.3, 2.9))  # lower in the mean, by one window
    assert member(math.inf).above(member(1.0))
    assert not member(1.0, 1.0, 1.0).above(member(0.0, math.inf, 0.0))


def test_a_faster_one_leads_where_it_is_clearly_lower_and_a_slower_one_in_any_doubt():
    slow, fast = member(7.0, 0.05, 3.0), member(9.0, 0.04, 1.5, factor=4.0)
    assert not slow.gives_way_to(fast) and fast.loss > slow.loss
    assert fast.gives_way_to(slow)  # by the mean alone
    assert slow.gives_way_to(member(4.0, 0.03, 1.4, factor=4.0))


def test_where_no_replay_is_trusted_a_slower_one_leads():
    population, gradient, _ = made(factors=(1, 4, 16))
    for number in range(6):
        population.step(batch(number))
    assert population.factor == 16
    gradient.replays = lambda: 0
    for number, factor in ((6, 4), (7, 1), (8, 1)):
        population.step(batch(number))
        assert population.factor == factor


def test_a_slower_one_never_takes_over_the_leader_s_weights():
    """It is what the population goes back to."""
    population, gradient, _ = made(factors=(1e-6, 1), rate=3e-2)
    began = weights(gradient.network)
    for number in range(12):
        population.step(batch(number))
    slow, leader = population.state_dict()["members"]
    assert population.factor == 1 and population.copies == 0
    assert fmean(slow["losses"]) > 2 * fmean(leader["losses"])
    assert torch.allclose(torch.cat([w.flatten() for w in slow["weights"]]), began, atol=1e-5)


def test_it_goes_on_from_a_checkpoint_to_the_bit():
    whole, gradient, _ = made(zo.MLPTangent(), replays=None)
    for number in range(6):
        whole.step(batch(number))
    half = made(zo.MLPTangent(), replays=None)
    for number in range(3):
        half[0].step(batch(number))
    buffer = io.BytesIO()
    parts = {"network": half[1].network, "optimizer": half[2], "gradient": half[1], "population": half[0]}
    torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    torch.manual_seed(5)
    again = made(zo.MLPTangent(), replays=None)
    parts = {"network": again[1].network, "optimizer": again[2], "gradient": again[1], "population": again[0]}
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    for number in range(3, 6):
        half[0].step(batch(number))
        again[0].step(batch(number))
    for other in (half[1], again[1]):
        assert torch.equal(weights(other.network), weights(gradient.network))
    assert whole.state_dict()["leader"] == again[0].state_dict()["leader"]
    with pytest.raises(zo.ConfigurationError, match="expected the factors of the state"):
        made(factors=(1, 2))[0].load_state_dict(saved["population"])


def test_buffers_are_the_leader_s():
    """Running means are of each member's own passes."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3, affine=False), torch.nn.Linear(3, 4)).double()
    box = Square()
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
        boxes=[box],
        tangent=ModelTangent(advance),
        replays=0,
    )
    population = zo.RatePopulation(gradient, torch.optim.SGD(network.parameters(), lr=1e-2), (1, 4))
    population.step(batch(0))
    expected = 0.1 * batch(0).mean(dim=0)
    assert torch.allclose(network[0].running_mean, expected)


@pytest.mark.parametrize("failures", ["raise", "keep"])
def test_where_the_box_fails_no_member_moves(failures):
    class Broken(Square):
        def evaluate_rows(self, x):
            return torch.full_like(x, math.nan)

    population, gradient, _ = made(box=Broken(failures=failures))
    before = population.state_dict()
    with pytest.raises((RowFailedError, zo.FailedBatchError)):
        population.step(batch(0))
    after = population.state_dict()
    for one, other in zip(before["members"], after["members"], strict=True):
        assert all(map(torch.equal, one["weights"], other["weights"])) and not other["losses"]
    assert torch.equal(
        weights(gradient.network), torch.cat([w.flatten() for w in before["members"][0]["weights"]])
    )


@pytest.mark.parametrize("factors", [(), (1, 1), (0, 1), (-1,), (math.nan,)])
def test_factors_that_are_none_are_refused(factors):
    with pytest.raises(zo.ConfigurationError, match="factors"):
        made(factors=factors)


def test_an_optimiser_of_other_weights_is_refused():
    _, gradient, _ = made()
    other = torch.nn.Linear(1, 1)
    weights = [*gradient.network.parameters(), *other.parameters()]
    with pytest.raises(zo.ConfigurationError, match="weights of the gradient's network"):
        zo.RatePopulation(gradient, torch.optim.Adam(weights))
