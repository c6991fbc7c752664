"""PhiFlow's linear operators on a channel's fields, as functions of arrays with rows first.

These run PhiFlow itself, slowly; `step` records them. Arrays are `(rows, 2, height, width)` for
velocities and `(rows, height, width)` for scalars.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from phi import field, math
from phi.field import Field
from phi.math import batch, dual, spatial
from phi.physics import diffuse
from phi.torch import TORCH
from torch import Tensor

from simulators.wake_flow.geometry import Channel

BITS = {torch.float32: 32, torch.float64: 64}


@contextmanager
def phiflow(dtype: torch.dtype) -> Iterator[None]:
    """PhiFlow with torch, on the CPU, in this precision; its global settings are put back after."""
    before = TORCH.get_default_device()
    TORCH.set_default_device("CPU")  # it would put its constants on a GPU wherever there is one
    try:
        with TORCH, math.precision(BITS[dtype]):
            yield
    finally:
        TORCH.set_default_device(before)


class Operators:
    """PhiFlow's diffusion, divergence and pressure gradient on one channel, in one dtype, on the CPU.

    Args:
        channel: the geometry.
        dtype: float32 or float64; PhiFlow's precision is global, so it is set around each call.
    """

    def __init__(self, channel: Channel, dtype: torch.dtype) -> None:
        """Make the empty grids that carry geometry and boundaries."""
        self.channel, self.dtype = channel, dtype
        with phiflow(dtype):
            self.velocity, self.pressure = channel.velocity_grid(), channel.pressure_grid()

    def diffusion(self, velocity: Tensor) -> Tensor:
        """Laplacian of the velocity, `(rows, 2, height, width)`; PhiFlow keeps the outlet's at zero."""
        with phiflow(self.dtype):
            return velocity_array(diffuse.differential(velocity_field(velocity, self.velocity), 1.0))

    def divergence(self, velocity: Tensor) -> Tensor:
        """Divergence of the velocity with the inflow's, `(rows, height, width)`."""
        with phiflow(self.dtype):
            return field.divergence(velocity_field(velocity, self.velocity)).values.native("rows,y,x")

    def gradient(self, pressure: Tensor) -> Tensor:
        """Gradient on the faces, `(rows, 2, height, width)`; 0 on the wall's column."""
        with phiflow(self.dtype):
            grid = self.pressure.with_values(_wrap(pressure.transpose(1, 2)))
            return velocity_array(
                field.spatial_gradient(grid, self.velocity.extrapolation, at=self.velocity.sampled_at)
            )


def velocity_field(velocity: Tensor, grid: Field) -> Field:
    """PhiFlow's staggered field with the values of `velocity` (rows, 2, height, width)."""
    x, y = velocity[:, 0, :, 1:].transpose(1, 2), velocity[:, 1].transpose(1, 2)
    values = {"x": _wrap(x), "y": _wrap(y)}
    return grid.with_values(math.stack(values, dual("vector")))


def velocity_array(velocity: Field) -> Tensor:
    """The array `(rows, 2, height, width)` of PhiFlow's staggered field."""
    components: Any = velocity  # PhiFlow makes attributes of dimensions at run time
    x, y = (components.vector[d].values.native("rows,y,x") for d in "xy")
    return torch.stack([F.pad(x, (1, 0)), y], 1)


def _wrap(values: Tensor) -> math.Tensor:
    return math.wrap(values, batch("rows"), spatial("x,y"))
