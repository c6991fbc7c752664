"""`WakeFlow` as a black box: arrays in and out, chunks, failures, pickling."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blackbox.errors import (
    ConfigurationError,
    InputError,
    NonFiniteInputError,
    NotDifferentiableError,
    RowFailedError,
    ShapeError,
)
from simulators.wake_flow import Channel, WakeFlow, WakeStep, viscosity
from simulators.wake_flow.staggered import start


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
    with pytest.raises(NotDifferentiableError):
        box(velocity.requires_grad_(), reynolds)
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


class Growing(WakeStep):
    """Ten times as fast at every step: 10 ** (38.53 - n) goes beyond float32 in step n + 1."""

    def __call__(self, velocity: torch.Tensor, reynolds: torch.Tensor) -> torch.Tensor:
        return velocity * 10


def growing(steps: int, **settings) -> tuple[WakeFlow, torch.Tensor, torch.Tensor]:
    box = WakeFlow(16, steps=steps, max_rows=2, **settings)
    box.step = Growing(16)
    velocity, reynolds = torch.ones(5, *box.inputs[0].shape), torch.linspace(100, 500, 5)
    velocity[2], velocity[3] = 1e34, 1e36
    return box, velocity, reynolds


def test_a_flow_that_blows_up_is_reported_with_its_row():
    box, velocity, reynolds = growing(20)
    with pytest.raises(RowFailedError, match=r"2 of 5 rows, the first of them row 2, failed: .*not finite"):
        box(velocity, reynolds)
    with pytest.raises(RowFailedError, match=r"row 1 failed: .*not finite"):
        box(velocity[[1, 3]], reynolds[[1, 3]])
    box, velocity, reynolds = growing(4)
    with pytest.raises(RowFailedError, match=r": row 3 failed: .*not finite"):
        box(velocity, reynolds)


def test_kept_failures_are_nan_and_counted():
    box, velocity, reynolds = growing(20, failures="keep")
    assert box(velocity, reynolds).isnan().flatten(1).all(1).tolist() == [False, False, True, True, False]
    assert (box.ledger.rows_failed, box.ledger.rows_run) == (2, 5)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest result of any operation."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr():
                self.largest = max(self.largest, tensor.numel())
        return result


def test_memory_beside_the_results_is_bounded_by_max_rows():
    velocity, reynolds = states(WakeFlow(16), 64)
    sizes = []
    for rows, most in ((64, 64), (64, 4), (16, 4), (4, 4)):
        box = WakeFlow(16, max_rows=most)
        box.step(velocity[:1], reynolds[:1])  # what is made once is made
        seen, real = LargestTensor(), box._advance

        def watched(*arrays, seen=seen, real=real):
            with seen:
                return real(*arrays)

        box._advance = watched
        box(velocity[:rows], reynolds[:rows])
        sizes.append(seen.largest)
    assert sizes[1] == sizes[2] == sizes[3] and 10 * sizes[1] < sizes[0]


@pytest.mark.slow
def test_by_itself_a_box_takes_as_many_rows_as_suit_its_grid():
    cpu = torch.device("cpu")
    found = {width: WakeFlow(width).rows_at_once(cpu) for width in (8, 32, 64)}
    assert found == {8: 64, 32: 64, 64: 16}
    assert WakeFlow(8, max_rows=3).rows_at_once(cpu) == 3
    assert [WakeFlow(width).rows_at_once(torch.device("cuda")) for width in (32, 64)] == [4096, 1024]


@pytest.mark.needs("gpu")
def test_on_a_gpu_a_box_gives_the_cpu_s_flow():
    velocity, reynolds = states(WakeFlow(8), 3)
    found = WakeFlow(8)(velocity.cuda(), reynolds.cuda())
    assert found.is_cuda and (found.cpu() - WakeFlow(8)(velocity, reynolds)).abs().max() < 1e-5


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
    assert len(frozen) < 1000  # no factorisation
    assert torch.equal(thawed(velocity, reynolds), expected)
    assert repr(thawed) == repr(box) and thawed.failures == "keep" and thawed.max_rows == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps: expected a whole number >= 1, got 0"),
        ({"max_rows": 0}, "max_rows"),
        ({"dt": -1.0}, "dt: expected a finite number > 0"),
        ({"dt": 10**400}, "dt: expected a finite number > 0"),
        ({"dt": True}, "dt: expected a finite number > 0"),
        ({"width": 4}, "at least 8 cells, got 4"),
        ({"dt": 63.0}, r"CFL number .* got 20\.2"),
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
