"""`Population`: what the surrogate must not touch, and what of it ends no training."""

from __future__ import annotations

import math

import pytest
import torch

import zo
from tests.zo.populations import TARGET, Square, batch, weights
from tests.zo.test_population_surrogate import Known, made
from zo.tangents.population import rivalry

STEPS = 16


def around(objective, steps=STEPS, network=None, off=0.0, replays=4, **settings):
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
    return zo.Population(gradient, optimizer, steps=steps), network


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
        if float(y.detach().min()) < -3.0:  # which the box never gives: x + x^2 / 4 is -1 at least
            raise ValueError("no such length")
        return (y - TARGET).square().sum(dim=1)

    population, _ = around(objective, off=-10.0)
    with pytest.warns(zo.errors.TangentWarning, match="through a model the objective raised ValueError"):
        for number in range(6):
            population.step(batch(number))
    assert population.leader.startswith("rate ")


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
