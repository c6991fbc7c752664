"""`Population`: what the surrogate must not touch, and what of it ends no training."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

import zo
from tests.zo import populations
from tests.zo.populations import TARGET, Square, batch, weights
from tests.zo.test_population_surrogate import Known, made
from zo.tangents.population import rivalry
from zo.tangents.population.members import Member

STEPS = 16


def around(objective, steps=STEPS, network=None, off=0.0, replays=4, fresh=None, **settings):
    """A population whose objective is `objective(network, box, x)`."""
    torch.manual_seed(0)
    network, box = torch.nn.Linear(3, 4).double() if network is None else network, Square()
    gradient = zo.TangentGradient(
        network,
        lambda net, x: objective(net, box, x),
        boxes=[box],
        tangent=Known(off),
        limits=zo.tangents.Limits(check_every=None, replays=replays),
        steps=steps,
        **settings,
    )
    optimizer = torch.optim.Adam(gradient.parameters.tensors, lr=3e-3)
    return zo.Population(gradient, optimizer, steps=steps, fresh=fresh), network


def distance(net, box, x):
    return (box(net(x)) - TARGET).square().sum(dim=1)


def test_gradients_of_weights_that_another_optimiser_has_are_left_alone(limits):
    limits(updates_of_a_population=200)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 4)).double()
    population, _ = around(distance, network=network, parameters="1.*")
    for weight in network[0].parameters():
        weight.grad = torch.ones_like(weight)
    for number in range(8):
        population.step(batch(number))
    assert population.updates > 0
    assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in network[0].parameters())


def test_an_objective_that_raises_by_the_models_values_ends_no_training():
    def objective(net, box, x):
        y = box(net(x))
        if float(y.detach().max()) > 500.0:  # which the box never gives for batches of training
            raise ValueError("no such length")
        return (y - TARGET).square().sum(dim=1)

    population, _ = around(objective, fresh=lambda number: 100 * batch(number))
    with pytest.warns(zo.errors.TangentWarning, match="through a model the objective raised ValueError"):
        for number in range(10):
            population.step(batch(number))
    assert population.updates == 0 and population.leader.startswith("rate ")


def test_where_boxes_are_asked_at_a_surrogate_and_the_objective_raises_a_rate_is_asked(limits):
    limits(updates_of_a_population=400)
    lost = []

    def objective(net, box, x):
        y = box(net(x))
        if lost and torch.equal(weights(net), lost[-1]):
            raise ValueError("no such length")
        return (y - TARGET).square().sum(dim=1)

    population, network = around(objective)
    ask = population._ask

    def ask_at(member, *settings):
        if member is population._surrogate:
            member.state.restore(generators=False)
            lost.append(weights(network).clone())
        return ask(member, *settings)

    population._ask = ask_at
    with pytest.warns(zo.errors.TangentWarning, match="through a model the objective raised ValueError"):
        for number in range(STEPS):
            population.step(batch(number))
    assert len(lost) >= rivalry.FEWEST and population.leader.startswith("rate ")


@pytest.mark.filterwarnings("ignore:TangentGradient.replays")
def test_where_steps_differ_in_their_calls_and_no_batches_are_given_the_surrogate_rests():
    def objective(net, box, x):
        y = net(x)
        for _ in range(1 + int(x.sum() > 0)):
            y = box(y)
        return (y - TARGET).square().sum(dim=1)

    population, _ = around(objective, replays=None)
    with pytest.warns(zo.errors.TangentWarning, match="the surrogate rests"):
        for number in range(10):
            population.step(batch(number))
    assert population.leader.startswith("rate ")


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_a_surrogate_is_trained_where_torch_records_no_graph(limits):
    limits(updates_of_a_population=200)
    whole, other = made(Known()), made(Known())
    for number in range(8):
        whole[0].step(batch(number))
        with torch.no_grad():
            other[0].step(batch(number))
    assert other[0].updates == whole[0].updates > 0
    assert torch.equal(weights(whole[1].network), weights(other[1].network))


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_more_steps_than_were_announced_are_as_many_as_nobody_knew_of(limits):
    """A burst ends converged, and not each step has one."""
    limits(updates_of_a_population=100)
    population, *_ = made(Known(), steps=5)
    updates = []
    for number in range(15):
        population.step(batch(number))
        updates.append(population.updates)
    assert updates[4] == 100 and updates[8] == 100 and updates[14] == 200  # ten for each window


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_where_a_rate_is_lost_on_a_trial_its_window_is_kept_and_it_counts(limits, monkeypatch):
    limits(updates_of_a_population=400)
    population, gradient, _ = made(Known())
    ask, replay, trials = population._ask, gradient.replay, []

    def ask_at(member, rows, trial):
        trials.append(trial)
        return ask(member, rows, trial)

    def lost(rows=None, *, last=False):
        loss = replay(rows, last=last)
        return loss * math.nan if last and trials[-1] else loss

    monkeypatch.setattr(population, "_ask", ask_at)
    monkeypatch.setattr(gradient, "replay", lost)
    for number in range(STEPS):
        population.step(batch(number))
    assert any(trials) and len(gradient.state_dict()["windows"]["windows"]) == STEPS
    assert population.state_dict()["rivalry"]["wait"] == 1


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_a_training_that_becomes_shorter_has_its_last_updates_at_its_end(limits):
    limits(updates_of_a_population=100)
    population, *_ = made(Known(), steps=40)  # 100 / 37 updates in a window, and 50 at a time
    for number in range(16):
        if number == 8:
            population.steps = 16
        assert population.updates == 0
        population.step(batch(number))
    assert population.updates == int(13 * 100 / 37)


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_rate_that_is_lost_on_one_row_does_not_speak_for_itself(rate):
    judged = rivalry.Rivalry(holds=True)
    for window in range(rivalry.KEPT):
        judged = judged.after(window, 1.0, rate if window == 2 else 2.0)
    assert judged.leads


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_a_rate_takes_no_step_where_the_surrogate_s_window_foretells_it_nonsense(limits, monkeypatch):
    """Far from where boxes were asked a model foretells losses out of all proportion: nothing to learn."""
    limits(updates_of_a_population=400)
    population, gradient, _ = made(Known())
    ask, replay, at_surrogate, moved = population._ask, gradient.replay, [], []

    def ask_at(member, *settings):
        at_surrogate.append(member is population._surrogate)
        return ask(member, *settings)

    def replay_as(*settings, last=False, **more):
        loss = replay(*settings, last=last, **more)
        return loss * 1e6 if last and at_surrogate[-1] else loss

    monkeypatch.setattr(population, "_ask", ask_at)
    monkeypatch.setattr(gradient, "replay", replay_as)
    take = population._take_window

    def take_window(most):
        before = weights(gradient.network)
        loss = take(most)
        moved.append((at_surrogate[-1], not torch.equal(before, weights(gradient.network))))
        return loss

    monkeypatch.setattr(population, "_take_window", take_window)
    for number in range(STEPS):
        population.step(batch(number))
    assert sum(at_surrogate) >= rivalry.FEWEST and (True, True) not in moved and (False, True) in moved
    kept = gradient.state_dict()["windows"]["windows"]
    assert len(kept) == STEPS - sum(at_surrogate)


class Fails(Square):
    """It fails in the first rows of a call."""

    rows = 0

    def evaluate_rows(self, x):
        y = super().evaluate_rows(x)
        y[: self.rows] = torch.nan
        return y


def of_rate(factor, losses, *lost):
    return Member(factor, losses=[losses] * 5, lost=list(lost))


OFTEN = (0, 8), (3, 8), (2, 8)  # rows that failed in windows, and how many there were


def test_whoever_fails_gives_the_lead_to_a_slower_one_and_restarts_from_it():
    slow, fast = of_rate(1.0, 9.0, (0, 8)), of_rate(16.0, 0.1, *OFTEN)
    assert slow.takes_over_from(fast) and fast.goes_back_to(slow)
    assert not fast.takes_over_from(slow)  # though the losses that are left are a hundred times lower
    assert not of_rate(1.0, math.inf).takes_over_from(fast)


@pytest.mark.parametrize("few", [[(8, 8)], [(1, 1)], [(1, 20)] * 5, []])
def test_a_tenth_of_the_rows_or_one_window_may_fail(few):
    slow, fast = of_rate(1.0, 9.0, (0, 8)), of_rate(16.0, 0.1, *few)
    assert not fast.fails and fast.takes_over_from(slow) and not slow.takes_over_from(fast)


def test_where_both_fail_the_losses_that_are_left_decide():
    slow, fast = of_rate(1.0, 9.0, *OFTEN), of_rate(16.0, 0.1, *OFTEN)
    assert fast.takes_over_from(slow) and not slow.takes_over_from(fast) and not fast.goes_back_to(slow)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_rate_that_fails_in_half_or_all_of_its_rows_leads_no_longer(rows):
    box = Fails(failures="keep")
    population, gradient, _ = populations.made(box=box)
    number = 0
    while population.factor < 16:
        population.step(batch(number))
        number += 1
    state, copies = weights(gradient.network), population.copies
    box.rows = rows
    for again in range(2):
        assert population.factor == 16 and again == sum(failed > 0 for failed, _ in population._rate.lost)
        with pytest.raises(zo.FailedBatchError) if rows == 2 else contextlib.nullcontext():
            population.step(batch(number + again))
    assert population.factor < 16 and population.copies == copies + 1
    assert not torch.equal(weights(gradient.network), state)
    other, *_ = populations.made(box=box)
    other.load_state_dict(population.state_dict())
    assert [member.lost for member in other._rates] == [member.lost for member in population._rates]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_surrogate_that_fails_in_half_of_its_rows_leads_no_longer(rows):
    """It would lead on: its losses on the other rows are those of a rate that stands still."""
    box = Fails(failures="keep")
    population, *_ = made(Known(), box, factors=(1e-9,))
    for number in range(3):
        population.step(batch(number))
    population._surrogate.takes(population._rate, population._rate.moments)
    population._rivalry = rivalry.Rivalry(holds=True, usual=(1.0,), asked=((0.1, 1.0),) * 3)
    population._model_steps.taken = 1
    box.rows = rows
    for number in range(4):
        population.step(batch(number))
    assert population.leader == ("rate 1e-09" if rows else "surrogate")
