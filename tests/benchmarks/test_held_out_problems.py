"""The problems that were held out: twins against boxes, laws that must hold, a training by first order."""

import numpy as np
import pytest
import torch

from benchmarks.rows.training import train
from benchmarks.rows.ways import Way
from benchmarks.tangents.designs import Doublet, TenBars
from benchmarks.tangents.formulas import Formula
from benchmarks.tangents.held_out import ForcedBurgers, GantryCrane, HeatExchanger, ResolvedLorenz
from benchmarks.tangents.problems import CONTROLLERS, DESIGNS, HELD_OUT, PROBLEMS


def seen_by_the_box(problem):
    """The arrays of the first call in an objective, in float64."""
    calls = []

    def solver(*arrays):
        calls.append([array.detach().double() for array in arrays])
        return problem.exact(*arrays)

    problem.objective(solver)(problem.start(0), problem.batch(0, 1))
    return calls[0]


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_twin_has_the_box_s_values_and_the_derivative_of_its_finite_differences(name):
    problem = PROBLEMS[name]()
    exact = problem.exact
    assert exact is not None
    with torch.no_grad():
        found = problem.objective(problem.box)(problem.start(0), problem.batch(0, 1))
    losses = problem.objective(exact)(problem.start(0), problem.batch(0, 1))
    assert torch.allclose(found, losses, rtol=1e-5)

    inputs = seen_by_the_box(problem)
    free = [spec.differentiable for spec in problem.box.inputs]
    generator = torch.Generator().manual_seed(0)
    along = [
        torch.randn(x.shape, generator=generator, dtype=x.dtype) * (0.1 * x.abs().mean() * moved)
        for x, moved in zip(inputs, free, strict=True)
    ]

    def answers(step):
        outputs = problem.box.evaluate_rows(
            *((x + step * d).numpy() for x, d in zip(inputs, along, strict=True))
        )
        together = outputs if isinstance(outputs, tuple) else (outputs,)
        return np.concatenate([output.reshape(len(output), -1) for output in together], 1)

    def twin(step):
        outputs = exact(*(x + step * d for x, d in zip(inputs, along, strict=True)))
        together = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.cat([output.flatten(1) for output in together], 1)

    zero = torch.zeros((), dtype=torch.float64)
    assert np.allclose(twin(zero), answers(0.0), rtol=1e-10)
    _, slope = torch.autograd.functional.jvp(twin, zero, torch.ones_like(zero))
    assert isinstance(slope, torch.Tensor)
    numeric = (answers(1e-5) - answers(-1e-5)) / 2e-5
    assert np.abs(numeric - slope.numpy()).max() < 1e-5 * np.abs(numeric).max()


@pytest.mark.parametrize("name", ["lens", "ten-bars"])
def test_first_order_trains(name):
    start = PROBLEMS[name]().error(PROBLEMS[name]().start(0))
    assert train(PROBLEMS[name](), Way(share=0.3), 0)["error"] < 0.3 * start


def test_what_is_held_out_has_a_kind_and_numpy_under_it():
    assert len(HELD_OUT) == 8 and set(DESIGNS) < set(HELD_OUT) and len(set(CONTROLLERS) & set(HELD_OUT)) == 2
    assert all(isinstance(PROBLEMS[name]().box, Formula) for name in DESIGNS)


def test_a_thin_lens_has_the_focal_length_of_the_lens_maker_s_formula():
    """Near the axis, with curvatures so low that thickness moves the focus by few percent."""
    c = 0.002
    f = 1 / ((1.51680 - 1) * 2 * c + (1.62004 - 1) * -c)
    heights = Doublet().evaluate_rows(np.array([0.1]), np.array([[c, -c, 0.0, f]])).reshape(3, 3, 5)
    assert abs(heights[0, 1]).max() < 0.03 * 0.1  # a ray at the edge of the pupil ends near the axis
    assert heights[2, 1, 2] == pytest.approx(f * np.tan(np.radians(3)), rel=0.03)


def test_a_truss_carries_its_loads():
    """The work of the load is twice the energy of the bars (Clapeyron), and all joints go down."""
    stress, shift = TenBars().evaluate_rows(np.array([[0.0, 100.0]]), np.full((1, 10), 10.0))
    assert (shift[0, 1::2] < 0).all()
    work = 100 * -shift[0, 7]  # kN mm, which is N m
    volume = 10e-4 * TenBars().lengths  # m^3, of 10 cm^2
    assert work == pytest.approx((stress[0] ** 2 / TenBars.STIFF * 1e6 * volume).sum(), rel=1e-9)


def test_a_heat_exchanger_at_rest_stays_and_keeps_its_energy():
    plant = HeatExchanger()
    state = np.array([plant.rest()])
    assert np.allclose(plant.evaluate_rows(state, np.zeros((1, 2))), state, atol=1e-6)
    assert (state[0, 0] - state[0, 9]) == pytest.approx(state[0, 10] - state[0, 1], rel=1e-6)


def test_a_crane_swings_with_its_period():
    """A fixed rope's angle obeys a pendulum whose frequency the trolley raises by (1 + load / trolley)."""
    plant, angle = GantryCrane(), 1e-3
    state = np.array([[plant.ROPE * angle, 0.0, angle, 0.0]])  # the trolley at zero
    found = [state]
    for _ in range(4):
        found.append(plant.evaluate_rows(found[-1], np.zeros((1, 1))))
    omega = np.sqrt(plant.GRAVITY / plant.ROPE * (1 + plant.LOAD / plant.TROLLEY))
    wanted = angle * np.cos(omega * 0.4 * np.arange(5))  # without the trolley's friction
    assert np.allclose([one[0, 2] for one in found], wanted, atol=0.15 * angle)


def test_burgers_keeps_its_momentum_and_lorenz_s_cells_rest_at_the_forcing():
    draw = np.random.default_rng(0)
    u = draw.standard_normal((2, 1, 32))
    assert np.allclose(ForcedBurgers().evaluate_rows(u, 0 * u).sum(2), u.sum(2), atol=1e-12)
    x = draw.standard_normal((2, 1, 8))
    still = np.full((1, 1, 8), 20.0)
    assert np.allclose(ResolvedLorenz().evaluate_rows(still, 0 * still), still)  # x = F rests
    assert not np.allclose(ResolvedLorenz().evaluate_rows(x, 0 * x), x)
