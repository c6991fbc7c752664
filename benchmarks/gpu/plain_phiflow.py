"""The step as a user of PhiFlow writes it first: what the wake's step is measured against, and held to.

Arrays are `(rows, 2, height, width)`, laid out as in `WakeStep`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from phi import math
from phi.field import Field
from phi.math import Solve, batch, dual, spatial
from phi.physics import advect, diffuse, fluid
from phi.torch import TORCH
from torch import Tensor

from simulators.wake_flow.geometry import Channel, viscosity


@contextmanager
def phiflow(dtype: torch.dtype, device: str = "cpu") -> Iterator[None]:
    """PhiFlow with torch in a precision on a device; its global settings are put back after."""
    before = TORCH.get_default_device()
    TORCH.set_default_device("CPU" if device == "cpu" else "GPU")
    try:
        with TORCH, math.precision(torch.finfo(dtype).bits):
            yield
    finally:
        TORCH.set_default_device(before)


def velocity_field(velocity: Tensor, grid: Field) -> Field:
    """PhiFlow's staggered field on `grid` with the values of an array."""
    x, y = velocity[:, 0, :, 1:].transpose(1, 2), velocity[:, 1].transpose(1, 2)
    values = {"x": wrapped(x), "y": wrapped(y)}
    return grid.with_values(math.stack(values, dual("vector")))


def velocity_array(velocity: Field) -> Tensor:
    """The array of PhiFlow's staggered field."""
    components: Any = velocity  # PhiFlow makes attributes of dimensions at run time
    x, y = (components.vector[d].values.native("rows,y,x") for d in "xy")
    return torch.stack([F.pad(x, (1, 0)), y], 1)


def wrapped(values: Tensor) -> math.Tensor:
    """Values `(rows, width, height)` as a tensor of PhiFlow's."""
    return math.wrap(values, batch("rows"), spatial("x,y"))


def mac_cormack(field: Field, velocity: Field, dt: float) -> Field:
    """`advect.mac_cormack` without its limiter, which fails on boundaries given per component."""
    ahead = advect.semi_lagrangian(field, velocity, dt)
    return ahead + 0.5 * (field - advect.semi_lagrangian(ahead, velocity, -dt))


SCHEMES = {"semi-lagrangian": advect.semi_lagrangian, "mac-cormack": mac_cormack}


def plain_step(
    velocity: Tensor,
    reynolds: Tensor,
    channel: Channel,
    dt: float = 1.0,
    advection: str = "semi-lagrangian",
    *,
    solve: Solve,
) -> Tensor:
    """One step of all rows, float32 or float64, eagerly, where the rows are; pressure by `solve`."""
    with phiflow(velocity.dtype, velocity.device.type):
        now = velocity_field(velocity, channel.velocity_grid())
        now = diffuse.explicit(now, math.wrap(viscosity(reynolds.to(velocity)), batch("rows")), dt)
        now = SCHEMES[advection](now, now, dt)
        return velocity_array(fluid.make_incompressible(now, channel.geometries, solve)[0])
