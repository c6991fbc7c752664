"""Staggered velocities as plain arrays: a run's start, the way to a coarser grid, and differences.

Divergence, diffusion and gradient are PhiFlow's with the channel's boundaries, written out: PhiFlow looks up
dimensions by name at every call, some 0.1 s a step however small the grid. Tests hold them to PhiFlow's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blackbox.errors import ConfigurationError, ShapeError
from simulators.wake_flow.geometry import CENTRE, RADIUS, SPEED, Channel


def start(
    channel: Channel, poke: float = 0.5, along: float = 80.0, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The stream at the inflow's speed with a sideways poke behind the cylinder.

    The poke, a bell of a cylinder's radius, breaks the symmetry: without it the wake stays steady
    until rounding has grown into vortices. The first step takes out the divergence.

    Args:
        channel: the geometry.
        poke: its velocity across, in units of the inflow's speed; 0 for none.
        along: where it is, in units of length from the inflow (the cylinder is at 50).
        dtype: of the result.

    Returns:
        `(2, height, width)`.
    """
    columns = torch.arange(channel.width, dtype=dtype) * channel.cell  # left faces
    rows = (torch.arange(channel.height, dtype=dtype) + 0.5) * channel.cell
    distance = (columns - CENTRE[0]).square() + (rows - along).square()[:, None]
    across = SPEED * poke * torch.exp(-distance / RADIUS**2)
    across[:, 0] = 0.0
    return torch.stack([across, torch.full_like(across, SPEED)])


def downsample(velocity: Tensor, factor: int) -> Tensor:
    """The velocity on a grid coarser by a whole factor: each coarse face gets the mean of its fine faces.

    So the flux through every face is kept: what was free of divergence still is.

    Args:
        velocity: `(..., 2, height, width)`, x on left and y on upper faces.
        factor: fine cells in a coarse one, in each direction.

    Returns:
        `(..., 2, height / factor, width / factor)`.

    Raises:
        ConfigurationError: `factor` is no whole number above 0.
        ShapeError: the factor does not divide height and width.
    """
    if not isinstance(factor, int) or factor < 1:
        raise ConfigurationError(f"downsample, factor: expected a whole number above 0, got {factor!r}.")
    height, width = velocity.shape[-2:]
    if height % factor or width % factor:
        raise ShapeError(
            f"downsample, velocity: expected sizes that {factor} divides, got {height} x {width}. "
            "Take widths of which one is a multiple of the other."
        )
    across, along = velocity[..., 0, :, ::factor], velocity[..., 1, factor - 1 :: factor, :]
    return torch.stack(
        [across.unflatten(-2, (-1, factor)).mean(-2), along.unflatten(-1, (-1, factor)).mean(-1)], -3
    )


def padded(velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Both components of `(rows, 2, height, width)` with one layer of boundary values around them.

    Returns x `(rows, height + 2, width + 1)`, both walls' faces at its sides, and y `(rows, height + 2,
    width + 2)`.
    """
    across = F.pad(velocity[:, 0, :, 1:], (1, 1, 1, 0))
    along = F.pad(velocity[:, 1], (1, 1, 1, 0), value=SPEED)
    return tuple(torch.cat([part, part[:, -1:]], 1) for part in (across, along))  # type: ignore[return-value]


def laplace(values: Tensor) -> Tensor:
    """Second differences at the inner points of `(rows, height, width)`, times the area of a cell."""
    middle = values[:, 1:-1, 1:-1]
    sides = values[:, 1:-1, :-2] + values[:, 1:-1, 2:] + values[:, :-2, 1:-1] + values[:, 2:, 1:-1]
    return sides - 4 * middle


def diffusion(velocity: Tensor, cell: float) -> Tensor:
    """Laplacian of `(rows, 2, height, width)`; 0 on the wall's column and on the outlet's faces."""
    across, along = padded(velocity)
    inside = laplace(along[:, :-1])  # as PhiFlow, which leaves the outlet's own faces out
    return torch.stack([F.pad(laplace(across), (1, 0)), F.pad(inside, (0, 0, 0, 1))], 1) / cell**2


def gradient(pressure: Tensor, cell: float) -> Tensor:
    """Of `(rows, height, width)` on the faces, `(rows, 2, height, width)`; 0 on the wall's column.

    Beyond the outlet the pressure is zero.
    """
    beyond = F.pad(pressure, (0, 0, 0, 1))
    return torch.stack([F.pad(pressure.diff(dim=2), (1, 0)), beyond.diff(dim=1)], 1) / cell


def divergence(velocity: Tensor, cell: float) -> Tensor:
    """Net outflow of each cell per area, from the faces' fluxes and the inflow's.

    Args:
        velocity: `(..., 2, height, width)`; the first column of channel 0 is taken as the wall's, 0.
        cell: side of a cell.

    Returns:
        `(..., height, width)`, per unit of time.
    """
    across = F.pad(velocity[..., 0, :, 1:], (1, 1))
    along = F.pad(velocity[..., 1, :, :], (0, 0, 1, 0), value=SPEED)
    return (across.diff(dim=-1) + along.diff(dim=-2)) / cell
