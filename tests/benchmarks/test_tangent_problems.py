"""The problems for learned tangents: values and twins agree, starts, published sizes, boxes around boxes."""

import math

import pytest
import torch
from torch import nn

from benchmarks.tangents import controllers
from benchmarks.tangents import filter as filters
from benchmarks.tangents.boxes import Failing, InUnits
from benchmarks.tangents.kuramoto_sivashinsky import Residual, published_error
from benchmarks.tangents.problems import PAPER, PROBLEMS, problems
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.lorenz96 import Lorenz96

QUICK = ("lorenz-96", "coupled-map", "mixed-units", "double-pendulum-wall")
MINUTES = ("wake-1k", "wake-30k", "wake-30k-unroll-16", "wake-260k", "wake-32x64")  # PhiFlow and a reference
RANDOM = ("-noise", "-failing")


def of(names, **marks):
    return [pytest.param(name, **marks) for name in names]


REST = [name for name in PROBLEMS if name not in (*QUICK, *MINUTES, "filter")]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", of(QUICK) + of(REST, marks=pytest.mark.slow))
def test_a_problem_is_complete(name):
    problem = PROBLEMS[name]()
    network, batch = problem.start(0), problem.batch(0, 1)
    assert problem.hard and problem.unit and problem.exact is not None

    losses = problem.objective(problem.exact)(network, batch)
    losses.mean().backward()
    gradients = [p.grad for p in network.parameters()]
    assert losses.isfinite().all() and all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients if g is not None)
    with torch.no_grad():
        found = problem.objective(problem.box)(network, batch)
    if not name.endswith(RANDOM):
        assert torch.allclose(found, losses, rtol=1e-5)
    again = problem.start(0), problem.batch(0, 1)
    one, other = (list(n.parameters()) for n in (network, again[0]))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    error = problem.error(network)
    assert error > 0 and error != problem.validate(network)
    if problem.known is not None:
        inputs, outputs = problem.known
        rows = torch.arange(0, len(outputs), max(1, len(outputs) // 8))
        assert torch.allclose(problem.exact(*(x[rows] for x in inputs)), outputs[rows], atol=1e-5)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["lorenz-96", "double-pendulum-wall"])
def test_a_network_of_a_seldom_measured_system_begins_without_a_correction(name):
    problem = PROBLEMS[name]()
    state, _ = problem.batch(0, 1)
    assert torch.equal(problem.start(0)(state), state) and problem.known is None


def test_sizes():
    assert problems("small")["lorenz-96"]().steps == 100
    assert set(problems("paper")) == set(PAPER) <= set(PROBLEMS)


@pytest.mark.parametrize(("size", "weights"), [((16, 2), 3297), ((26, 8), 33125), ((52, 12), 196457)])
def test_published_networks_have_the_published_weights(size, weights):
    assert sum(p.numel() for p in Residual(*size).parameters()) == weights


def test_the_published_error():
    """An error of .1 in all frames but the first of four, over the largest square, 4; lost rows count 30."""
    truth = torch.ones(2, 4, 1, 6)
    truth[:, 0, 0, 0] = -2
    found = truth.clone()
    found[:, 1:] += 0.1
    assert published_error(found, truth) == pytest.approx(0.75 * 0.01 / 4, rel=1e-4)
    found[0, 2:] = torch.nan
    assert published_error(found, truth) == pytest.approx((5 * 0.01 / 4 + 2 * 30 - 0.01 / 4) / 8, rel=1e-3)


def test_rows_fail_at_the_rate_that_is_asked_for_and_a_run_can_be_resumed():
    box, state = Failing(Lorenz96(sites=8, failures="keep"), 0.1), Lorenz96(sites=8).start(1000, seed=0)
    first = box(state)
    lost = first.isnan().flatten(1).any(1)
    assert 60 < lost.sum() < 140  # 4 standard errors
    assert torch.equal(first[~lost], box.box(state)[~lost])
    saved = box.state_dict()
    second = box(state).isnan()
    assert not torch.equal(second, first.isnan())
    resumed = Failing(Lorenz96(sites=8, failures="keep"), 0.1)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed(state).isnan(), second)


def test_units_change_the_numbers_and_nothing_else():
    inner, units = Lorenz96(sites=6, steps=3), torch.logspace(-3, 3, 6)
    box = InUnits(inner, units)
    state = box.start(4, seed=0)
    assert torch.allclose(box(state) * units, inner((state * units)[:, None])[:, 0], rtol=1e-5)
    assert state.abs().mean(0).max() / state.abs().mean(0).min() > 1e5


def moved(plant, state, action, calls=1):
    """A plant's state after some calls with the same action, in float64."""
    state, action = (torch.tensor([numbers], dtype=torch.float64) for numbers in (state, action))
    for _ in range(calls):
        state = plant.advance(state, action)
    return state[0]


def test_a_stirred_tank_rests_where_it_was_published_to_rest():
    steady = controllers.StirredTank.STEADY  # to four decimals
    assert torch.allclose(
        moved(controllers.StirredTank(), steady, (0.0,)), torch.tensor(steady).double(), atol=1e-4
    )


def test_a_ball_falls_freely_and_swings_on_the_plate():
    ball, g, omega = controllers.BouncingBall(), 9.81, 10.0
    time = ball.dt * ball.substeps
    fallen = torch.tensor([0.9 + 0.2 * time - g / 2 * time**2, 0.2 - g * time], dtype=torch.float64)
    assert torch.allclose(moved(ball, (0.9, 0.2), (3.0,)), fallen, rtol=1e-12)
    pressed, speed = -g / omega**2, -2.0  # where the spring carries the ball; it swings around that
    angle = omega * time
    swung = pressed - 0.2 * math.sin(angle), speed * math.cos(angle)
    assert torch.allclose(moved(ball, (pressed, speed), (0.0,)), torch.tensor(swung).double(), atol=1e-5)


def test_a_drone_hovers_falls_and_turns_as_a_free_body_does():
    drone, g = controllers.Drone(), 9.81
    time = drone.dt * drone.substeps
    gone = torch.tensor([1 + 0.3 * time, 2 + 0.4 * time, 0, 0.3, 0.4, 0], dtype=torch.float64)
    assert torch.allclose(moved(drone, (1.0, 2.0, 0.0, 0.3, 0.4, 0.0), (0.0, 0.0)), gone, rtol=1e-12)
    turned = moved(drone, (0.0,) * 6, (-50.0, 50.0), calls=3)  # a fifth of the thrust, all of the torque
    time *= 3
    assert torch.allclose(
        turned[[2, 5]], torch.tensor([5 * time**2, 10 * time], dtype=torch.float64), rtol=1e-9
    )
    assert turned[0] < 0 and -g * time < turned[4] < -0.8 * g * time


def test_jets_at_rest_leave_kuramoto_and_sivashinsky_s_waves_alone():
    plant = controllers.JetsOnKuramotoSivashinsky()
    waves = KuramotoSivashinsky(points=32, dt=0.25, steps=4)
    state = waves.start(2, seed=0)
    assert torch.equal(plant.advance(state[:, 0], torch.zeros(2, 4)), waves.advance(state)[:, 0])
    pushes = plant.push
    assert torch.equal(pushes.argmax(1), torch.arange(0, 32, 8)) and torch.equal(pushes[1], pushes[0].roll(8))


@pytest.mark.needs("ngspice")
def test_the_ladders_closed_form_is_ngspices_answer():
    parts = torch.tensor(filters.TYPICAL, dtype=torch.float64)
    drawn = parts * torch.exp(0.7 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double())
    assert (filters.filters()(drawn) - filters.ladder(drawn)).abs().max() < 1e-6


def test_a_missing_program_is_named_with_its_cure(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(filters.ConfigurationError, match="apt-get install ngspice"):
        filters.design()


def test_the_filters_first_order_gradient_reaches_the_network(monkeypatch):
    """Without the program: the twin takes its place."""
    monkeypatch.setattr(filters, "filters", lambda: filters.ladder)
    problem = filters.design()
    network = problem.start(0)
    losses = problem.objective(filters.ladder)(network, problem.batch(0, 1))
    losses.mean().backward()
    weight = next(network.parameters())
    assert isinstance(network, nn.Module) and weight.grad is not None and weight.grad.abs().max() > 0
