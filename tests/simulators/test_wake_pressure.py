"""The pressure solver against a sparse factorisation of PhiFlow's own matrix."""

import numpy as np
import pytest
import scipy.sparse.linalg as spla
import torch

from simulators.errors import OperatorMismatchError
from simulators.wake_flow import Channel, pressure
from simulators.wake_flow.geometry import CYLINDER, Box, Cylinder
from simulators.wake_flow.pressure import PressureSolver, laplace_matrix

BOX = Box((20, 60), (45, 90))
SEVERAL = (Cylinder((30, 40), 9), Cylinder((72, 55), 7.5), BOX)  # three bodies
JOINED = (CYLINDER, Box((45, 45), (80, 55)), Cylinder((30, 120), 10))  # the first two are one body

CHANNELS = [
    *(Channel(width) for width in (8, 17, 32, 64)),
    *(Channel(20, obstacles) for obstacles in ((), (BOX,), SEVERAL, JOINED)),
]
NAMES = ["8", "17", "32", "64", "empty", "box", "three bodies", "two bodies"]


def right_sides(channel: Channel, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channel.width)
    noise = torch.randn(rows, channel.height, channel.width, generator=generator, dtype=torch.float64)
    return noise * torch.from_numpy(channel.masks.active)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("channel", CHANNELS, ids=NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_pressure_is_that_of_a_sparse_solve(channel, dtype, tolerance):
    right = right_sides(channel)
    solve = spla.splu(laplace_matrix(channel).tocsc()).solve
    expected = np.stack([solve(r.numpy().ravel()).reshape(r.shape) for r in right])
    found = PressureSolver(channel)(right.to(dtype)).double().numpy()
    error = (found - expected) * channel.masks.active
    assert np.abs(error).max() <= tolerance * np.abs(expected).max()


def test_a_spike_beside_the_cylinder_is_solved_as_well_as_noise():
    channel = Channel(32)
    active = torch.from_numpy(channel.masks.active)
    row, column = (int(i[0]) for i in np.nonzero(channel.masks.active == 0))
    spikes = torch.zeros(2, channel.height, channel.width, dtype=torch.float64)
    spikes[0, row - 1, column] = 1.0  # its link downstream is cut
    spikes[1, -1, 0] = 1.0  # a corner: wall and outlet
    assert active[row - 1, column] == 1 and active[row, column] == 0
    found = PressureSolver(channel)(spikes)
    for pressure_, spike in zip(found, spikes, strict=True):
        back = laplace_matrix(channel) @ (pressure_ * active).numpy().ravel()
        np.testing.assert_allclose(back, spike.numpy().ravel(), atol=1e-12)


def test_the_matrix_of_the_fluid_is_symmetric_and_keeps_out_of_the_cylinder():
    channel = Channel(16)
    matrix, active = laplace_matrix(channel), channel.masks.active.ravel() > 0
    assert abs(matrix - matrix.T).max() == 0
    assert matrix[active][:, ~active].nnz == 0
    # Only the outlet's cells lose something to the outside.
    sums = np.asarray(matrix[active].sum(1)).ravel().reshape(-1)
    outlet = (np.arange(active.size) // channel.width == channel.height - 1)[active]
    assert (np.abs(sums[~outlet]) < 1e-12).all() and (sums[outlet] < -0.9 / channel.cell**2).all()


def test_gradient_is_the_solve_itself():
    # The operator is symmetric, so the vector-Jacobian product is another solve.
    channel = Channel(16)
    solver = PressureSolver(channel)
    right, cotangent = right_sides(channel, 2), right_sides(channel, 4)[2:]
    right.requires_grad_()
    (gradient,) = torch.autograd.grad((solver(right) * cotangent).sum(), right)
    active = torch.from_numpy(channel.masks.active)
    expected = solver(cotangent)
    assert ((gradient - expected) * active).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.slow
def test_a_link_stays_for_each_body_and_no_more():
    for obstacles, bodies in ((SEVERAL, 3), (JOINED, 2), ((), 0)):
        channel = Channel(20, obstacles)
        active = channel.masks.active
        cut = np.abs(np.diff(active, axis=0)).sum() + np.abs(np.diff(active, axis=1)).sum()
        assert (
            PressureSolver(channel).tables(torch.float64, torch.device("cpu")).ends.shape[1] == cut - bodies
        )


def test_another_operator_is_refused(monkeypatch):
    channel = Channel(16)
    other = laplace_matrix(channel).tolil()
    other[channel.width, channel.width + 1] += 1e-3
    monkeypatch.setattr(pressure, "laplace_matrix", lambda _: other.tocsr())
    with pytest.raises(OperatorMismatchError, match=r"residual.*pinned version"):
        PressureSolver(channel)
