"""The heat equation: against its closed form, in value and in order."""

import math

import torch

from simulators.heat import Heat


def error_after(time: float, points: int, steps: int) -> float:
    """Largest error, from a start of two waves, against their decay in closed form."""
    box = Heat(points=points, conductivity=0.7, dt=time / steps, steps=steps)
    x = torch.arange(1, points + 1, dtype=torch.float64) / (points + 1)
    waves = {1: 1.0, 3: -0.5}
    state = sum((a * torch.sin(n * math.pi * x) for n, a in waves.items()), torch.zeros(points))
    exact = sum(
        (
            a * math.exp(-0.7 * (n * math.pi) ** 2 * time) * torch.sin(n * math.pi * x)
            for n, a in waves.items()
        ),
        torch.zeros(points),
    )
    return float((box(state.view(1, 1, -1)) - exact).abs().max())


def test_second_order_in_time_and_space():
    errors = [error_after(0.1, points, steps) for points, steps in ((15, 8), (31, 16), (63, 32))]
    assert errors[0] < 0.02
    assert all(1.8 < math.log2(errors[i] / errors[i + 1]) < 2.2 for i in (0, 1))


def test_exact_is_the_closed_form():
    box = Heat(points=20, conductivity=0.3)
    x = torch.arange(1, 21, dtype=torch.float64) / 21
    for n in (1, 2, 20):
        wave = torch.sin(n * math.pi * x)[None]
        expected = wave * math.exp(-0.3 * (n * math.pi) ** 2 * 0.01)
        assert (box.exact(wave, 0.01) - expected).abs().max() < 1e-13


def test_exact_is_a_semigroup_and_starts_at_the_state():
    box = Heat(points=12)
    state = box.start(3, seed=0).double()
    assert (box.exact(state, 0.0) - state).abs().max() < 1e-13
    assert (box.exact(box.exact(state, 0.01), 0.02) - box.exact(state, 0.03)).abs().max() < 1e-13


def test_the_default_is_close_to_the_solution():
    box = Heat(steps=50)
    state = box.start(5, seed=0)
    exact = box.exact(state, 50 * box.dt)
    assert (box(state) - exact).abs().max() < 0.005 * state.abs().max()
    assert exact.abs().max() < 0.6 * state.abs().max()


def test_any_dt_is_stable():
    box = Heat(dt=100.0, steps=20)
    state = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    assert box(state).norm() <= state.norm()
