"""Shallow water: waves at the speed of the book, what is conserved, balance, order in time."""

import math
from itertools import pairwise

import pytest
import torch

from blackbox.errors import ConfigurationError
from simulators.shallow_water import ShallowWater


def test_small_waves_travel_at_the_discrete_dispersion_relation():
    """Without rotation and friction h' = a cos(k x) cos(w t), w = sqrt(g H) sin(k): central differences."""
    box = ShallowWater(4, 16, gravity=2.0, depth=1.5, rotation=0.0, viscosity=0.0, dt=0.05, steps=40)
    k = 2 * math.pi * 2 / 16
    wave = torch.cos(k * torch.arange(16, dtype=torch.float64)).expand(4, 16)
    still = torch.zeros_like(wave)
    state = torch.stack([1.5 + 1e-8 * wave, still, still])[None]
    omega = math.sqrt(2.0 * 1.5) * math.sin(k)
    found = (box(state)[0, 0] - 1.5) / 1e-8
    assert (found - wave * math.cos(omega * 2.0)).abs().max() < 1e-5


def test_waves_go_along_y_as_along_x():
    box = ShallowWater(8, 8, rotation=0.3)
    state = box.start(2, seed=0).double()
    # Mirrored at the diagonal the velocities change places and the rotation its sign.
    turned = ShallowWater(8, 8, rotation=-0.3)
    mirrored = state.transpose(-1, -2)[:, [0, 2, 1]]
    expected = box(state).transpose(-1, -2)[:, [0, 2, 1]]
    assert (turned(mirrored) - expected).abs().max() < 1e-12


def test_the_sum_of_the_depth_is_conserved():
    box = ShallowWater(steps=50)
    state = box.start(3, seed=0).double()
    assert (box(state)[:, 0].sum((1, 2)) - state[:, 0].sum((1, 2))).abs().max() < 1e-10
    assert (box(state) - state).abs().max() > 0.02


def test_a_uniform_current_turns_in_circles():
    """Inertial oscillation: with no slopes the velocity rotates at f."""
    box = ShallowWater(4, 4, rotation=0.5, dt=0.05, steps=20)
    state = torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64)[:, None, None].expand(1, 3, 4, 4)
    found = box(state)[0, :, 0, 0]
    expected = torch.tensor([1.0, 0.3 * math.cos(0.5), -0.3 * math.sin(0.5)], dtype=torch.float64)
    assert (found - expected).abs().max() < 1e-7


def test_order_in_time():
    state = ShallowWater(8, 8).start(2, seed=0).double()
    fine = ShallowWater(8, 8, dt=2 / 128, steps=128)(state)
    errors = [float((ShallowWater(8, 8, dt=2 / n, steps=n)(state) - fine).abs().max()) for n in (4, 8, 16)]
    assert all(3.5 < math.log2(a / b) < 4.6 for a, b in pairwise(errors)), errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 2}, "height"),
        ({"gravity": 0.0}, "gravity: expected a finite number > 0"),
        ({"viscosity": -0.1}, "viscosity"),
        ({"rotation": float("inf")}, "rotation"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigurationError, match=f"ShallowWater, {words}"):
        ShallowWater(**settings)
