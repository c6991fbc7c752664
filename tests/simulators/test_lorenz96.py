"""Lorenz's systems: order, energy, the sum over the fast scale, Fourier's view of the linear part, chaos."""

import math
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp

from simulators.lorenz96 import Lorenz96, TwoScaleLorenz96
from tests.simulators.systems import lyapunov_exponent


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def one_scale_by_loops(x: np.ndarray, forcing: float) -> np.ndarray:
    """The equation as it is printed, one site at a time (negative indices wrap around)."""
    n = len(x)
    return np.array([(x[(k + 1) % n] - x[k - 2]) * x[k - 1] - x[k] + forcing for k in range(n)])


def two_scale_by_loops(state: np.ndarray, box: TwoScaleLorenz96) -> np.ndarray:
    """Lorenz's equations with the fast variables in one ring `y[k * fast + j]`."""
    x, y = state[0], state[1:].T.reshape(-1)
    k_count, j_count, n = box.sites, box.fast, box.sites * box.fast
    h, c, b = box.coupling, box.time_ratio, box.amplitude_ratio
    dx = one_scale_by_loops(x, box.forcing)
    dy = np.empty(n)
    for k in range(k_count):
        dx[k] -= h * c / b * sum(y[k * j_count + j] for j in range(j_count))
        for j in range(j_count):
            i = k * j_count + j
            dy[i] = c * b * y[(i + 1) % n] * (y[i - 1] - y[(i + 2) % n]) - c * y[i] + h * c / b * x[k]
    return np.vstack([dx, dy.reshape(k_count, j_count).T])


def test_against_scipy():
    box = Lorenz96(sites=9, forcing=8.0, dt=0.0025, steps=200)
    state = 8 + normal(1, 9)
    solved = solve_ivp(
        lambda _, x: one_scale_by_loops(x, 8.0), (0, 0.5), state[0].numpy(), rtol=1e-11, atol=1e-11
    )
    assert np.abs(box(state[None])[0, 0].numpy() - solved.y[:, -1]).max() < 1e-5


def test_two_scales_against_scipy():
    box = TwoScaleLorenz96(sites=5, fast=3, forcing=10.0, coupling=0.8, time_ratio=7.0, substeps=100)
    state = normal(4, 5)

    def tendency(_: float, flat: np.ndarray) -> np.ndarray:
        return two_scale_by_loops(flat.reshape(4, 5), box).reshape(-1)

    assert (
        np.abs(box.tendency(state).numpy() - tendency(0, state.numpy().reshape(-1)).reshape(4, 5)).max()
        < 1e-12
    )
    solved = solve_ivp(tendency, (0, box.dt), state.reshape(-1).numpy(), rtol=1e-11, atol=1e-11)
    assert np.abs(box.step(state).reshape(-1).numpy() - solved.y[:, -1]).max() < 1e-5


def test_both_are_of_fourth_order():
    for make, state in (
        (lambda n: Lorenz96(dt=0.4 / n, steps=n), Lorenz96().start(4, seed=0)),
        (lambda n: TwoScaleLorenz96(dt=0.1, substeps=4 * n), TwoScaleLorenz96().start(4, seed=0)),
    ):
        state = state.double()
        fine = make(128)(state)
        errors = [float((make(n)(state) - fine).abs().max()) for n in (8, 16, 32)]
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        assert all(3.4 < order < 4.8 for order in orders), orders


def test_the_quadratic_part_conserves_energy():
    box, state = Lorenz96(sites=11), normal(3, 1, 11)
    power = (state * (box.tendency(state) + state - box.forcing)).sum()
    assert abs(float(power)) < 1e-12


def test_two_scales_exchange_energy_and_lose_none():
    """Without forcing, d/dt of the sum of squares / 2 is that of the two dampings alone."""
    box, state = TwoScaleLorenz96(sites=6, fast=4, forcing=0.0, coupling=0.7), normal(3, 5, 6)
    power = (state * box.tendency(state)).sum()
    damped = -state[:, :1].square().sum() - box.time_ratio * state[:, 1:].square().sum()
    assert abs(float(power - damped)) < 1e-10


def test_the_slow_variables_lack_the_sum_over_the_fast_ones_alone():
    """What a closure of `Lorenz96` has to learn: `-(h c / b) sum_j Y`."""
    full = TwoScaleLorenz96(sites=8, fast=32, forcing=20.0)
    reduced = Lorenz96(sites=8, forcing=20.0)
    state = full.start(4, seed=0).double()
    missing = full.slow(full.tendency(state)) - reduced.tendency(full.slow(state))
    expected = -full.coupling * full.time_ratio / full.amplitude_ratio * state[:, 1:].sum(1, keepdim=True)
    assert (missing - expected).abs().max() < 1e-10
    assert expected.abs().mean() > 1  # and it is no small one
    assert full.slow(state).shape == (4, *reduced.shape)


def test_without_coupling_the_slow_variables_are_the_one_scale_system():
    full = TwoScaleLorenz96(sites=8, coupling=0.0, forcing=9.0, dt=0.05, substeps=10, steps=4)
    alone = Lorenz96(sites=8, forcing=9.0, dt=0.005, steps=40)
    state = full.start(2, seed=0).double()
    assert (full.slow(full(state)) - alone(full.slow(state))).abs().max() < 1e-11


def test_the_rings_have_no_preferred_site():
    one, two = Lorenz96(sites=9), TwoScaleLorenz96(sites=6, fast=3)
    for box in (one, two):
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
