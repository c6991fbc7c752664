"""Kuramoto-Sivashinsky: order in time, a second discretisation, what is conserved, and chaos as published."""

import math
from itertools import pairwise

import pytest
import torch

from simulators.kuramoto_sivashinsky import KuramotoSivashinsky, etdrk4
from tests.simulators.systems import lyapunov_exponent


def after(box: KuramotoSivashinsky, state: torch.Tensor, time: float) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(round(time / box.dt)):
            state = box.step(state)
    return state


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("points", "least"),
    [(16, 3.7), (64, 2.5)],  # damping up to 22 and 6,900: there third order at these steps, fourth at smaller
)
def test_order_in_time(points, least):
    whole = KuramotoSivashinsky().start(4, seed=0).double()
    state = whole[..., :: 64 // points]
    fine = after(KuramotoSivashinsky(points=points, dt=2.0 / 256), state, 2.0)
    errors = [
        float((after(KuramotoSivashinsky(points=points, dt=dt), state, 2.0) - fine).abs().max())
        for dt in (0.25, 0.125, 0.0625)
    ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[0] < 1e-3 and all(least < order < 4.6 for order in orders), (errors, orders)


def test_the_tendency_is_the_equations():
    """du/dt from tiny steps, against the derivatives of u = sin(2x) + cos(3x) on a ring of 2 pi."""
    points = 48
    x = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    u = torch.sin(2 * x) + torch.cos(3 * x)
    u_x = 2 * torch.cos(2 * x) - 3 * torch.sin(3 * x)
    u_xx = -4 * torch.sin(2 * x) - 9 * torch.cos(3 * x)
    u_xxxx = 16 * torch.sin(2 * x) + 81 * torch.cos(3 * x)
    dt = 1e-5
    box = KuramotoSivashinsky(points=points, length=2 * math.pi, dt=dt)
    found = (box.step(u[None]) - u) / dt
    expected = -u * u_x - u_xx - u_xxxx
    assert (found - expected).abs().max() < 100 * dt * expected.abs().max()
    # Its error is of first order in dt, so taking it out leaves one of second order.
    twice = (KuramotoSivashinsky(points=points, length=2 * math.pi, dt=dt / 2).step(u[None]) - u) / (dt / 2)
    assert (2 * twice - found - expected).abs().max() < 1e-4


def test_a_finer_grid_gives_the_same_flow():
    coarse, fine = KuramotoSivashinsky(points=64), KuramotoSivashinsky(points=128)
    state = fine.start(3, seed=0).double()
    expected = after(fine, state, 5.0)[..., ::2]
    assert (after(coarse, state[..., ::2], 5.0) - expected).abs().max() < 1e-5


def test_small_waves_grow_at_the_linear_rate():
    box = KuramotoSivashinsky(length=22.0)
    x = torch.arange(64, dtype=torch.float64) / 64
    for waves in (1, 2, 3, 4, 5):
        k = 2 * math.pi * waves / 22.0
        state = 1e-9 * torch.cos(2 * math.pi * waves * x)[None]
        grown = after(box, state, 5.0)
        assert torch.allclose(grown, state * math.exp(5.0 * (k**2 - k**4)), rtol=1e-6, atol=1e-17)


def test_the_product_makes_no_aliases():
    """A mode of 20 waves squares to 40, which 64 points would show as 24 waves: it must show nowhere."""
    box = KuramotoSivashinsky(points=64, length=22.0, dt=1e-6)
    x = torch.arange(64, dtype=torch.float64) / 64
    spectrum = torch.fft.rfft(box.step(torch.cos(2 * math.pi * 20 * x)[None])).abs()[0]
    spectrum[20] = 0
    assert spectrum.max() < 1e-12


def test_the_mean_is_conserved_and_a_moving_frame_changes_nothing():
    box = KuramotoSivashinsky()
    state = box.start(4, seed=0).double()
    shifted = after(box, state + 0.4, 10.0)
    assert (shifted.mean(-1) - (state + 0.4).mean(-1)).abs().max() < 1e-12
    # u(x, t) + c = v(x - c t, t): Galilean invariance, here by a shift of the Fourier phases
    waves = 2 * math.pi * torch.arange(33, dtype=torch.float64) / box.length
    still = torch.fft.irfft(torch.fft.rfft(after(box, state, 10.0)) * torch.exp(-1j * waves * 4.0), 64)
    assert (shifted - 0.4 - still).abs().max() < 1e-2


def test_coefficients_match_their_formulas_where_these_do_not_cancel():
    dt = 0.5
    linear = torch.tensor([-40.0, -7.0, 6.0], dtype=torch.float64)
    z = linear * dt
    e = torch.exp(z)
    whole, half, stage, begin, middle, end = etdrk4(linear, dt)
    assert torch.allclose(whole, e) and torch.allclose(half.square(), e)
    assert torch.allclose(stage, dt * torch.expm1(z / 2) / z, rtol=1e-12)
    assert torch.allclose(begin, dt * (-4 - z + e * (4 - 3 * z + z**2)) / z**3, rtol=1e-10)
    assert torch.allclose(middle, dt * 2 * (2 + z + e * (z - 2)) / z**3, rtol=1e-10)
    assert torch.allclose(end, dt * (-4 - 3 * z - z**2 + e * (4 - z)) / z**3, rtol=1e-10)


def test_coefficients_at_zero_are_those_of_runge_kutta():
    """Their limits: 1/2 for the stages, 1/6, 2/6 (once, the sum of two enters) and 1/6 for the step."""
    found = torch.cat(etdrk4(torch.zeros(1, dtype=torch.float64), 1.0))
    expected = torch.tensor([1, 1, 1 / 2, 1 / 6, 1 / 3, 1 / 6], dtype=torch.float64)
    assert (found - expected).abs().max() < 1e-14


@pytest.mark.slow
@pytest.mark.slow
def test_chaos_as_published():
    """Largest Lyapunov exponent on a ring of 22: .043 (Edson et al. 2019), .048 (Cvitanović et al. 2010)."""
    box = KuramotoSivashinsky(length=22.0)
    state = box.start(64, seed=0).double()
    exponent = lyapunov_exponent(box, state, steps=8000, settle=400) / box.dt
    error = float(exponent.std() / 8)
    assert error < 2e-3
    assert 0.043 - 3 * error < float(exponent.mean()) < 0.048 + 3 * error


def test_short_rings_are_not_chaotic():
    """Below 2 pi nothing grows: every state decays to its mean."""
    box = KuramotoSivashinsky(points=16, length=6.0)
    state = torch.randn(3, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ended = after(box, state, 300.0)
    assert (ended - state.mean(-1, keepdim=True)).abs().max() < 1e-8
