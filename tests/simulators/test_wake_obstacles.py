"""Bodies in the stream, the cylinder and a window of `Forces`: against closed forms."""

import numpy as np
import pytest
import torch

from simulators.wake_flow import Channel, WakeStep
from simulators.wake_flow.geometry import CYLINDER, LENGTHS, RADIUS, Box, Cylinder
from simulators.wake_flow.staggered import divergence, start

CASES = {"cylinder": (CYLINDER,), "box": (Box((38.0, 41.0), (61.0, 77.0)),)}

each_case = pytest.mark.parametrize("obstacles", CASES.values(), ids=CASES.keys())


def noisy(channel: Channel, rows: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    velocity = 0.2 * torch.randn(rows, *channel.shape, generator=generator, dtype=torch.float64)
    velocity[:, 1] += 1
    return velocity.to(dtype)


def centres(channel: Channel) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (np.arange(n) + 0.5 for n in (channel.height, channel.width))
    return np.meshgrid(columns * channel.cell, rows * channel.cell)


def inside(obstacles, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = np.zeros(x.shape, bool)
    for obstacle in obstacles:
        if isinstance(obstacle, Cylinder):
            found |= (x - obstacle.centre[0]) ** 2 + (y - obstacle.centre[1]) ** 2 <= obstacle.radius**2
        else:
            (left, below), (right, above) = obstacle.lower, obstacle.upper
            found |= (left <= x) & (x <= right) & (below <= y) & (y <= above)
    return found


@pytest.mark.quick_cases(1)
@each_case
def test_cells_are_solid_where_their_centre_is_inside(obstacles):
    channel = Channel(33, obstacles)
    assert np.array_equal(channel.masks.active == 0, inside(obstacles, *centres(channel)))


@pytest.mark.quick_cases(2)
@each_case
def test_soft_edges_have_the_obstacles_area(obstacles):
    """Summed over all faces, what is taken from the velocity is the area, to half a cell along the edges."""
    channel = Channel(64, obstacles)
    x, y = np.meshgrid(*(np.linspace(0, length, 2001) for length in LENGTHS))
    area = inside(obstacles, x, y).mean() * LENGTHS[0] * LENGTHS[1]
    (body,) = obstacles
    sides = (2 * RADIUS, 2 * RADIUS) if isinstance(body, Cylinder) else np.subtract(body.upper, body.lower)
    perimeter = 2 * sum(sides)
    for component in channel.masks.fractions[:, :, 1:]:
        assert abs((1 - component).sum() * channel.cell**2 - area) < perimeter * channel.cell / 2


@pytest.mark.quick_cases(2)
@each_case
def test_mass_is_conserved(obstacles):
    """No divergence in any cell of fluid; what flows out beside what flows in went through the bodies' edges.

    PhiFlow's soft edges let some through, where a face at the edge is covered in part: here less than 3 % of
    the stream, which each body gives off on one side as it takes it in on the other.
    """
    channel = Channel(20, obstacles)
    step, re = WakeStep(channel), torch.tensor([200.0, 700.0], dtype=torch.float64)
    velocity = noisy(channel, 2)
    for _ in range(20):
        velocity = step(velocity, re)
    active = torch.from_numpy(channel.masks.active)
    assert (divergence(velocity, channel.cell) * active).abs().max() < 1e-12
    outflow = velocity[:, 1, -1].sum(-1) * channel.cell
    through = (divergence(velocity, channel.cell) * (1 - active)).sum((1, 2)) * channel.cell**2
    assert (outflow - LENGTHS[0] - through).abs().max() < 1e-10
    assert through.abs().max() < 0.03 * LENGTHS[0]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("advection", ["semi-lagrangian", "mac-cormack"])
def test_uniform_flow_without_obstacle_stays_uniform_to_rounding(advection):
    step = WakeStep(Channel(12, ()), advection=advection)
    uniform = start(step.channel, poke=0.0)[None]
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-13)):
        velocity, reynolds = uniform.to(dtype), torch.tensor([400.0], dtype=dtype)
        for _ in range(50):
            velocity = step(velocity, reynolds)
        assert (velocity - uniform).abs().max() < tolerance
