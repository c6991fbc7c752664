"""Burgers by PhiFlow: against the Cole-Hopf solution; and as a black box."""

import math
import pickle

import numpy as np
import pytest
import torch

from blackbox.errors import ConfigurationError
from simulators.burgers import Burgers1D


def cole_hopf(x: np.ndarray, time: float, viscosity: float) -> np.ndarray:
    """From u = sin(2 pi x): u = -2 nu phi_x / phi, phi solves the heat equation, here by Fourier modes."""
    fine = np.arange(1024) / 1024
    phi = np.exp((np.cos(2 * math.pi * fine) - 1) / (4 * math.pi * viscosity))
    modes = np.fft.rfft(phi) / 1024
    k = 2 * math.pi * np.arange(len(modes))
    modes *= np.exp(-viscosity * k**2 * time)
    modes[1:] *= 2
    waves = modes * np.exp(1j * k * x[:, None])
    return -2 * viscosity * (1j * k * waves).real.sum(1) / waves.real.sum(1)


def errors_at(time: float, points: int, steps: int) -> np.ndarray:
    box = Burgers1D(points=points, viscosity=0.01, dt=time / steps, steps=steps)
    x = (np.arange(points) + 0.5) / points
    found = box(np.sin(2 * math.pi * x)[None, None])[0, 0]
    return np.abs(found - cole_hopf(x, time, 0.01))


@pytest.mark.slow
def test_it_converges_to_the_cole_hopf_solution_through_the_shock():
    """The shock forms at t = 1 / (2 pi) = .16; splitting and advection make it first order and better."""
    errors = [errors_at(0.3, points, steps).mean() for points, steps in ((32, 15), (64, 30), (128, 60))]
    assert errors[0] < 0.05 and errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


def test_the_solution_that_it_is_held_against_is_one():
    """Cole-Hopf's u at t = 0 is the start, and it satisfies the equation at a later time."""
    x, nu, h = np.arange(16) / 16, 0.02, 1e-4
    np.testing.assert_allclose(cole_hopf(x, 0.0, nu), np.sin(2 * math.pi * x), atol=1e-9)
    u = cole_hopf(x, 0.1, nu)
    u_t = (cole_hopf(x, 0.1 + h, nu) - cole_hopf(x, 0.1 - h, nu)) / (2 * h)
    up, down = cole_hopf(x + h, 0.1, nu), cole_hopf(x - h, 0.1, nu)
    np.testing.assert_allclose(u_t + u * (up - down) / (2 * h), nu * (up - 2 * u + down) / h**2, atol=1e-4)


def test_a_call_is_its_steps_for_each_row_by_itself():
    box, three = Burgers1D(points=16), Burgers1D(points=16, steps=3)
    state = box.start(4, seed=0)
    expected = box(box(box(state)))
    assert (three(state) - expected).abs().max() < 1e-6
    assert (torch.cat([three(row[None]) for row in state]) - expected).abs().max() < 1e-6
    assert (expected - state).abs().max() > 0.01


def test_float64_is_computed_in_float64():
    box = Burgers1D(points=16)
    state = box.start(2, seed=0)
    fine = box(state.double())
    assert fine.dtype == torch.float64 and 1e-10 < (fine - box(state)).abs().max() < 1e-5


def test_strong_viscosity_is_substepped_and_decays_waves_at_their_rate():
    box = Burgers1D(points=32, viscosity=0.5, dt=0.02)
    x = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    wave = 1e-6 * torch.sin(2 * math.pi * x).view(1, 1, -1)
    assert box.substeps > 1
    assert torch.allclose(box(wave), wave * math.exp(-0.5 * (2 * math.pi) ** 2 * 0.02), rtol=0.02, atol=1e-9)


def test_a_dead_row_stays_dead_alone():
    box = Burgers1D(points=16, failures="keep")
    state = box.start(3, seed=0)
    expected = box(state)
    state[1, 0, 2] = float("nan")
    found = box(state)
    assert found[1].isnan().all() and torch.equal(found[[0, 2]], expected[[0, 2]])


def test_starts_are_distinct_and_repeatable():
    box = Burgers1D()
    states = box.start(4, seed=0)
    assert states.dtype == torch.float32 and states.shape == (4, 1, 64)
    assert torch.equal(states, box.start(4, seed=0)) and not torch.equal(states, box.start(4, seed=1))
    assert torch.pdist(states.flatten(1)).min() > 0.5


def test_pickles_hold_the_settings():
    box = Burgers1D(points=16, viscosity=0.01, dt=0.02, steps=2, failures="keep")
    state = box.start(3, seed=0)
    thawed = pickle.loads(pickle.dumps(box))
    assert torch.equal(thawed(state), box(state))
    assert repr(thawed) == repr(box) and thawed.failures == "keep"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"points": 7}, "points"),
        ({"viscosity": 0.0}, "viscosity"),
        ({"dt": -1.0}, "dt"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigurationError, match=f"Burgers1D, {words}: expected"):
        Burgers1D(**settings)
