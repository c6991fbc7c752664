"""Oscillators against SciPy's solvers, energy, implicit derivatives, impacts."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from blackbox.errors import ConfigurationError
from simulators.oscillators import DoublePendulum, VanDerPol
from tests.simulators.systems import assert_derivative_is_the_differences


def van_der_pol(stiffness: float):
    return lambda _, s: [s[1], stiffness * (1 - s[0] ** 2) * s[1] - s[0]]


def double_pendulum(_, s: np.ndarray, g: float = 9.81) -> np.ndarray:
    """The equations as textbooks print them for equal masses and rods, solved for both accelerations."""
    one, two, p, q = s
    d = one - two
    below = 3 - math.cos(2 * d)
    up = -3 * g * math.sin(one) - g * math.sin(one - 2 * two)
    up -= 2 * math.sin(d) * (q**2 + p**2 * math.cos(d))
    down = 2 * math.sin(d) * (2 * p**2 + 2 * g * math.cos(one) + q**2 * math.cos(d))
    return np.array([p, q, up / below, down / below])


@pytest.mark.slow
def test_van_der_pol_is_of_first_order_and_tends_to_scipy():
    state = torch.tensor([[1.8, -0.1]], dtype=torch.float64)
    solved = solve_ivp(van_der_pol(5.0), (0, 2.0), state[0].numpy(), method="Radau", rtol=1e-10, atol=1e-12)
    expected = torch.tensor(solved.y[:, -1])
    errors = [
        float((VanDerPol(stiffness=5.0, dt=2.0 / n, steps=n)(state)[0] - expected).norm())
        for n in (250, 500, 1000)
    ]
    assert all(0.9 < math.log2(a / b) < 1.1 for a, b in pairwise(errors)), errors


def test_a_step_solves_the_implicit_equations():
    box = VanDerPol(stiffness=40.0, dt=0.02)
    state = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    after = box(state)
    assert after.isfinite().all()
    assert (after - state - box.dt * box.tendency(after)).abs().max() < 1e-9


@pytest.mark.slow
def test_van_der_pol_forgets_the_velocity_and_jumps():
    """On the slow branch a change of v has gone after a call; x passes from 1 to -2 within a jump."""
    box = VanDerPol(stiffness=20.0, dt=0.02, steps=25)
    state = torch.tensor([[2.0, -0.03], [2.0, 0.97]], dtype=torch.float64)
    after = box(state)
    # What is left is the way that x went meanwhile: the integral of the change of v.
    assert (after[1] - after[0]).abs().max() < 0.05
    long = VanDerPol(stiffness=20.0, dt=0.02, steps=100)
    states = [long.start(16, 0).double()]
    for _ in range(10):
        states.append(long(states[-1]))
    x = torch.stack(states)[1:, :, 0]
    assert x.max() > 1.7 and x.min() < -1.7 and x.abs().max() < 2.1


def test_van_der_pols_derivative_is_that_of_its_values_where_it_is_stiff():
    box = VanDerPol(stiffness=40.0, dt=0.02, steps=5)
    assert_derivative_is_the_differences(box.advance, box.start(6, seed=0).double())


def test_the_pendulum_against_scipy():
    state = torch.tensor([1.0, -0.5, 0.3, 0.7], dtype=torch.float64)
    box = DoublePendulum(dt=0.002, steps=500)
    solved = solve_ivp(double_pendulum, (0, 1.0), state.numpy(), rtol=1e-11, atol=1e-12)
    assert np.abs(box(state[None])[0].numpy() - solved.y[:, -1]).max() < 1e-7


def test_the_pendulums_energy_stays_or_falls_with_friction():
    state = DoublePendulum().start(8, seed=0).double()
    free, damped = DoublePendulum(dt=0.005, steps=400), DoublePendulum(dt=0.005, steps=400, friction=0.3)
    before = free.energy(state)
    assert (free.energy(free(state)) - before).abs().max() < 1e-5 * before.abs().max()
    assert (damped.energy(damped(state)) < before).all()


def test_small_swings_have_the_textbook_frequencies():
    """Normal modes of equal pendulums: w^2 = g (2 - sqrt 2) with angles 1 : sqrt 2."""
    omega = math.sqrt(9.81 * (2 - math.sqrt(2)))
    state = 1e-6 * torch.tensor([[1.0, math.sqrt(2), 0, 0]], dtype=torch.float64)
    box = DoublePendulum(dt=0.005, steps=200)
    assert (box(state) - state * math.cos(omega))[0, :2].abs().max() < 1e-11


def test_the_wall_turns_the_rod_back_and_takes_energy():
    box = DoublePendulum(wall=0.2, restitution=0.5, dt=0.01)
    free = DoublePendulum(dt=0.01)
    state = torch.tensor([[0.195, 0.0, 2.0, 0.0]], dtype=torch.float64)
    met, through = box(state), free(state)
    assert through[0, 0] > 0.2
    assert torch.allclose(met[0, 0], 0.4 - through[0, 0]) and torch.allclose(met[0, 2], -0.5 * through[0, 2])
    assert torch.equal(met[0, [1, 3]], through[0, [1, 3]])
    seen = state
    for _ in range(300):
        seen = box(seen)
        assert seen[0, 0] <= 0.2 + 1e-12


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (VanDerPol, {"stiffness": 0.0}, "stiffness"),
        (VanDerPol, {"stiffness": 10.0, "dt": 0.2}, "dt: expected a finite number"),
        (DoublePendulum, {"friction": -1.0}, "friction"),
        (DoublePendulum, {"restitution": 1.5}, "restitution"),
        (DoublePendulum, {"wall": float("nan")}, "wall"),
    ],
)
def test_bad_settings_are_named(kind, settings, words):
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__}, {words}"):
        kind(**settings)
