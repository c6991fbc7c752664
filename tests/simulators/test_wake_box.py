"""`WakeFlow` as a black box: arrays in and out, chunks, failures, pickling; and that its wake sheds."""

import pickle

import numpy as np
import pytest
import torch

from blackbox.errors import ConfigurationError, InputError, NonFiniteInputError, ShapeError
from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.geometry import Channel, viscosity
from simulators.wake_flow.staggered import start
from simulators.wake_flow.step import WakeStep


def states(box: WakeFlow, rows: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    pokes = torch.linspace(-0.5, 0.5, rows).tolist()
    velocity = torch.stack([start(box.step.channel, poke, dtype=dtype) for poke in pokes])
    return velocity, torch.logspace(2, 3, rows).to(dtype)


def test_a_call_takes_the_steps_that_it_says():
    box = WakeFlow(16, steps=3, dt=0.5)
    velocity, reynolds = states(box, 4)
    expected = velocity
    for _ in range(3):
        expected = box.step(expected, reynolds)
    assert torch.equal(box(velocity, reynolds), expected)
    assert not torch.equal(box(velocity, reynolds), velocity)


def test_numpy_in_numpy_out_with_any_leading_axes():
    box = WakeFlow(16)
    velocity, reynolds = states(box, 6)
    expected = box(velocity, reynolds).numpy()
    found = box(velocity.numpy().reshape(2, 3, *box.inputs[0].shape), reynolds.numpy().reshape(2, 3))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_float64_is_computed_in_float64():
    box = WakeFlow(16)
    fine, coarse = box(*states(box, 2, torch.float64)), box(*states(box, 2))
    assert fine.dtype == torch.float64
    assert 1e-9 < (fine - coarse).abs().max() < 1e-5


def test_chunks_change_rounding_only():
    velocity, reynolds = states(WakeFlow(16), 7)
    whole, chunked = (WakeFlow(16, steps=4, max_rows=n)(velocity, reynolds) for n in (128, 3))
    assert (whole - chunked).abs().max() < 5e-6


def test_no_gradient_comes_out():
    box = WakeFlow(16)
    velocity, reynolds = states(box, 2)
    assert not box(velocity.requires_grad_(), reynolds).requires_grad
    assert box.step(velocity, reynolds).requires_grad


def test_a_dead_row_goes_on_dead_beside_the_living():
    box = WakeFlow(16, failures="keep")
    velocity, reynolds = states(box, 4)
    expected = box(velocity, reynolds)
    velocity[2, 0, 5, 5] = float("nan")
    found = box(velocity, reynolds)
    assert found[2].isnan().all()
    living = [0, 1, 3]
    assert (found[living] - expected[living]).abs().max() < 2e-6
    with pytest.raises(NonFiniteInputError):
        WakeFlow(16)(velocity, reynolds)


def test_a_flow_that_blows_up_is_a_failed_row():
    box = WakeFlow(16, steps=2, failures="keep")
    velocity, reynolds = states(box, 3)
    velocity[1, :, ::2], velocity[1, :, 1::2] = 3e38, -3e38  # their difference is no float32
    found = box(velocity, reynolds)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()
    assert box.ledger.rows_failed == 1


@pytest.mark.parametrize("reynolds", [0.0, -100.0, 1.5e5, 1.0])
def test_reynolds_numbers_out_of_range_are_refused(reynolds):
    box = WakeFlow(16)
    velocity, good = states(box, 2)
    good[1] = reynolds
    with pytest.raises(InputError, match=r"WakeFlow\(16.*reynolds: expected 2\.05 to 100000.*row 1"):
        box(velocity, good)


def test_the_smallest_reynolds_number_is_where_diffusion_turns_unstable():
    # The shortest wave on the grid is amplified by 1 - 8 nu dt / cell^2: beyond -1 it grows.
    channel, dt = Channel(16), 1.0
    for factor, grows in ((0.95, True), (1.05, False)):
        nu = viscosity(channel.smallest_reynolds(dt) * factor)
        assert (abs(1 - 8 * nu * dt / channel.cell**2) > 1) == grows


def test_pickle_gives_the_same_bits_and_settings():
    box = WakeFlow(16, steps=2, dt=0.5, advection="mac-cormack", max_rows=5, failures="keep")
    velocity, reynolds = states(box, 6)
    expected = box(velocity, reynolds)
    frozen = pickle.dumps(box)
    thawed = pickle.loads(frozen)
    assert len(frozen) < 1000  # no recording, no factorisation
    assert torch.equal(thawed(velocity, reynolds), expected)
    assert repr(thawed) == repr(box) and thawed.failures == "keep" and thawed.max_rows == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps: expected a whole number above 0, got 0"),
        ({"max_rows": 0}, "max_rows"),
        ({"dt": -1.0}, "dt: expected a time above 0"),
        ({"width": 4}, "at least 8 cells, got 4"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        WakeFlow(**settings)


def test_swapped_axes_are_refused_before_anything_runs():
    box = WakeFlow(16)
    velocity, reynolds = states(box, 2)
    with pytest.raises(ShapeError):
        box(velocity.transpose(-1, -2), reynolds)
    assert box.ledger.rows_run == 0


def shedding_frequency(signal: torch.Tensor, dt: float) -> float:
    """From the upward zero crossings of a signal `(times,)`, interpolated between samples."""
    signal = signal - signal.mean()
    before = torch.nonzero((signal[:-1] < 0) & (signal[1:] >= 0)).flatten()
    times = before + signal[before] / (signal[before] - signal[before + 1])
    return float((len(times) - 1) / ((times[-1] - times[0]) * dt))


def test_the_wake_sheds_at_a_confined_cylinders_frequency():
    """Strouhal number f D / U against that of the unbounded cylinder.

    Williamson (1989, J. Fluid Mech. 206): St = -3.3265 / Re + 0.1816 + 1.6e-4 Re for parallel shedding at
    49 < Re < 178, here used up to 200. Walls raise it, as the flow must pass beside the cylinder faster: by
    1 / (1 - 0.2) at most, the mean acceleration in the gap, as these walls move with the stream and grow
    no boundary layers.
    """
    reynolds = torch.tensor([100.0, 150.0, 200.0])
    step = WakeStep(48, dt=0.5, advection="mac-cormack")
    velocity = start(step.channel).repeat(3, 1, 1, 1)
    probe = []  # velocity across at the domain's centre, 2.5 diameters behind the cylinder
    with torch.no_grad():
        for _ in range(1200):
            velocity = step(velocity, reynolds)
            probe.append(velocity[:, 0, 48, 24])
    signals = torch.stack(probe)[600:].T
    assert (signals.std(dim=1) > 0.2).all()
    strouhal = torch.tensor([shedding_frequency(s, step.dt) * 20 for s in signals])
    unbounded = -3.3265 / reynolds + 0.1816 + 1.6e-4 * reynolds
    assert (strouhal > unbounded).all() and (strouhal < 1.25 * unbounded).all()
    assert (strouhal.diff() > 0).all()
