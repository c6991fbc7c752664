"""The step that a user of PhiFlow writes first: what the wake's step is held against."""

from __future__ import annotations

from phi import math
from phi.field import Field
from phi.math import Solve, batch
from phi.physics import advect, diffuse, fluid
from torch import Tensor

from simulators.wake_flow.geometry import Channel, viscosity
from simulators.wake_flow.operators import phiflow, velocity_array, velocity_field


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
    """One step of all rows `(rows, 2, height, width)`, float32 or float64, eagerly."""
    with phiflow(velocity.dtype):
        now = velocity_field(velocity, channel.velocity_grid())
        now = diffuse.explicit(now, math.wrap(viscosity(reynolds.to(velocity)), batch("rows")), dt)
        now = SCHEMES[advection](now, now, dt)
        return velocity_array(fluid.make_incompressible(now, channel.geometries, solve)[0])
