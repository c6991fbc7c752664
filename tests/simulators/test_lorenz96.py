"""Lorenz's system: order, energy, chaos."""

import math
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp

from simulators.lorenz96 import Lorenz96
from tests.simulators.systems import lyapunov_exponent


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def one_scale_by_loops(x: np.ndarray, forcing: float) -> np.ndarray:
    """The equation as it is printed, one site at a time (negative indices wrap around)."""
    n = len(x)
    return np.array([(x[(k + 1) % n] - x[k - 2]) * x[k - 1] - x[k] + forcing for k in range(n)])


def test_against_scipy():
    box = Lorenz96(sites=9, forcing=8.0, dt=0.0025, steps=200)
    state = 8 + normal(1, 9)
    solved = solve_ivp(
        lambda _, x: one_scale_by_loops(x, 8.0), (0, 0.5), state[0].numpy(), rtol=1e-11, atol=1e-11
    )
    assert np.abs(box(state[None])[0, 0].numpy() - solved.y[:, -1]).max() < 1e-5


def test_it_is_of_fourth_order():
    def ended(n: int) -> torch.Tensor:
        return Lorenz96(dt=0.4 / n, steps=n)(state)

    state = Lorenz96().start(4, seed=0).double()
    fine = ended(128)
    errors = [float((ended(n) - fine).abs().max()) for n in (8, 16, 32)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(3.4 < order < 4.8 for order in orders), orders


def test_the_quadratic_part_conserves_energy():
    box, state = Lorenz96(sites=11), normal(3, 1, 11)
    power = (state * (box.tendency(state) + state - box.forcing)).sum()
    assert abs(float(power)) < 1e-12


def test_the_ring_has_no_preferred_site():
    box = Lorenz96(sites=9)
    state = box.start(2, seed=0).double()
    assert (box.step(state.roll(2, -1)) - box.step(state).roll(2, -1)).abs().max() < 1e-12


def test_chaos_as_published():
    """Largest exponent 1.67 at 40 sites and F = 8: doubled in 2.1 days of .2 (Lorenz & Emanuel 1998)."""
    box = Lorenz96(sites=40, forcing=8.0, dt=0.05)
    exponent = lyapunov_exponent(box, box.start(64, seed=0).double(), steps=1000) / box.dt
    error = float(exponent.std() / 8)
    assert error < 0.02
    assert abs(float(exponent.mean()) - 1.67) < 0.03 + 3 * error


def test_weak_forcing_ends_at_rest():
    """Below F = 8/9 the state X = F is stable (Lorenz & Emanuel 1998)."""
    box = Lorenz96(sites=40, forcing=0.5, steps=1000)
    assert (box(box.start(2, seed=0).double()) - 0.5).abs().max() < 1e-6
