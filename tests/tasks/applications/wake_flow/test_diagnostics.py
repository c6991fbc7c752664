"""What is measured of velocities, against closed forms and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simulators.wake_flow import Channel, WakeStep
from simulators.wake_flow.staggered import start
from tasks.applications.wake_flow import Gauges, diagnostics

WIDTHS = (16, 25)  # the second has no face in the middle


def places(width):
    """Positions of x faces and y faces, in units of length, by loops."""
    cell = 100 / width
    rows, columns = range(2 * width), range(width)
    left = [[(i * cell, (j + 0.5) * cell) for i in columns] for j in rows]
    upper = [[((i + 0.5) * cell, (j + 1) * cell) for i in columns] for j in rows]
    return np.array([left, upper])  # (2, height, width, 2)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_wake_is_the_stated_window_behind_the_cylinder(width):
    across, along = np.moveaxis(places(width), -1, 0)
    expected = (abs(across - 50) <= 30) & (along >= 60) & (along <= 170)  # D is 20, the centre (50, 50)
    gauges = Gauges(Channel(width))
    assert np.array_equal(gauges.wake.numpy(), expected)
    difference = torch.full((3, 2, 2 * width, width), 7.0)
    difference[:, gauges.wake] = torch.tensor([-1.0, 2.0, -3.0])[:, None]
    assert gauges.wake_error(difference).tolist() == [1.0, 2.0, 3.0]


def test_divergence_of_a_stream_that_gains_speed_is_its_gain():
    width, gain = 16, 0.003
    upper = torch.from_numpy(places(width)[1, ..., 1])
    velocity = torch.stack([torch.zeros_like(upper), 1 + gain * upper])[None]
    for found in Gauges(Channel(width)).divergences(velocity):
        assert found.item() == pytest.approx(20 * gain, rel=1e-6)  # in U / D


def test_divergence_of_one_face_is_that_of_its_two_cells_and_none_in_the_cylinder():
    channel = Channel(16)
    gauges, velocity = Gauges(channel), start(channel, poke=0.0, dtype=torch.float64).repeat(3, 1, 1, 1)
    velocity[1, 0, 20, 5] += 0.25  # in the stream
    velocity[2, 0, 8, 8] += 0.25  # on the cylinder's axis: centre (50, 50), cells of 6.25
    mean, largest = gauges.divergences(velocity)
    middles = 6.25 * (np.arange(32) + 0.5) - 50
    solid = (np.hypot(middles[:, None], middles[:16]) < 10).sum()
    each = 20 * 0.25 / 6.25
    assert largest.tolist() == pytest.approx([0, each, 0], abs=1e-12)
    assert mean.tolist() == pytest.approx([0, 2 * each / (16 * 32 - solid), 0], abs=1e-12)


def test_the_solver_leaves_no_divergence():
    channel = Channel(16)
    with torch.no_grad():
        velocity = WakeStep(channel)(start(channel, dtype=torch.float64)[None], torch.tensor([200.0]))
    assert all(found.item() < 1e-12 for found in Gauges(channel).divergences(velocity))


def test_energy_of_a_wavy_stream_is_a_half_and_a_quarter_of_the_amplitude_squared():
    velocity = torch.zeros(2, 2, 32, 16, dtype=torch.float64)
    velocity[:, 1] = 1.0
    velocity[1, 0] = 0.6 * torch.sin(2 * torch.pi * 3 * torch.arange(32) / 32)[:, None]
    assert diagnostics.kinetic_energy(velocity).tolist() == pytest.approx([0.5, 0.5 + 0.6**2 / 4])


def test_a_rollout_is_lost_from_the_first_error_that_is_no_flow_s():
    errors = np.array(
        [
            [0.1, 0.2, 0.3, 0.4],
            [0.1, np.nan, 0.3, 0.4],  # a number after NaN means nothing
            [0.1, 0.2, 11.0, 0.4],
            [np.inf, np.inf, np.nan, np.nan],
        ]
    )
    expected = [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert diagnostics.lost(errors).astype(int).tolist() == expected


def test_stability_counts_steps_before_the_error_passes_the_solver_s():
    generator = np.random.default_rng(0)
    errors, baseline = generator.random((200, 6)), generator.random((200, 6)) + 0.5
    errors[::7, 3:] = np.nan
    baseline[::5, 2:] = np.nan
    found = diagnostics.stability(errors, baseline)
    for line, (own, solver) in enumerate(zip(errors, baseline, strict=True)):
        steps = 0
        while steps < 6 and np.isfinite(own[steps]) and not own[steps] > solver[steps]:  # nothing is > NaN
            steps += 1
        assert found[line] == steps
    assert set(found.tolist()) == set(range(7))  # every outcome was met


def probed(width, dt, advection, reynolds, settle, steps):
    """The velocity across the stream behind the cylinder, `(rows, steps)`, of the solver alone."""
    channel = Channel(width)
    step = WakeStep(channel, dt, advection)
    velocity, signal = start(channel).repeat(len(reynolds), 1, 1, 1), []
    with torch.no_grad():
        for _ in range(settle + steps):
            velocity = step(velocity, torch.tensor(reynolds))
            signal.append(velocity[:, 0, width, width // 2])  # the cylinder is at a half of this
    return torch.stack(signal[settle:], dim=1).double().numpy()


def strouhal(signal, dt):
    """f D / U from upward zero crossings."""
    signal = signal - signal.mean()
    before = np.flatnonzero((signal[:-1] < 0) & (signal[1:] >= 0))
    times = before + signal[before] / (signal[before] - signal[before + 1])
    return 20 * (len(times) - 1) / ((times[-1] - times[0]) * dt)


@pytest.mark.slow
def test_strouhal_number_of_the_coarse_wake():
    """32 x 64, semi-Lagrangian: a prototype of the solver had .154 at both, read off a coarse spectrum."""
    for signal in probed(32, 1.0, "semi-lagrangian", (100.0, 200.0), settle=600, steps=600):
        assert strouhal(signal, 1.0) == pytest.approx(0.154, rel=0.05)


@pytest.mark.slow
@pytest.mark.slow
def test_strouhal_number_of_the_reference_wake():
    """64 x 128, MacCormack, beside what a prototype of the solver had."""
    signals = probed(64, 0.5, "mac-cormack", (100.0, 150.0, 200.0), settle=1200, steps=1200)
    for signal, expected in zip(signals, (0.196, 0.208, 0.213), strict=True):
        assert strouhal(signal, 0.5) == pytest.approx(expected, rel=0.05)
