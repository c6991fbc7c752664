"""The wake step as a user of PhiFlow writes it first: what the fast one is measured against.

PhiFlow's own operators with its defaults, `make_incompressible` with conjugate gradients to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from phi import math
from phi.field import Field
from phi.math import Solve, batch
from phi.physics import advect, diffuse, fluid
from torch import Tensor

from simulators.wake_flow.geometry import Channel, viscosity
from simulators.wake_flow.operators import phiflow, velocity_array, velocity_field

Scheme = Callable[[Field, Field, float], Field]
CG = Solve("CG", 1e-5, 0)


def mac_cormack(field: Field, velocity: Field, dt: float) -> Field:
    """`advect.mac_cormack` without its limiter, which fails on boundaries given per component."""
    ahead = advect.semi_lagrangian(field, velocity, dt)
    return ahead + 0.5 * (field - advect.semi_lagrangian(ahead, velocity, -dt))


SCHEMES: dict[str, Scheme] = {"semi-lagrangian": advect.semi_lagrangian, "mac-cormack": mac_cormack}


def plain_step(
    velocity: Tensor,
    reynolds: Tensor,
    channel: Channel,
    dt: float = 1.0,
    advection: str = "semi-lagrangian",
    solve: Solve = CG,
) -> Tensor:
    """One step of all rows, eagerly.

    Args:
        velocity: `(rows, 2, height, width)`, float32 or float64.
        reynolds: `(rows,)`.
        channel: the geometry.
        dt: time step.
        advection: a name of `SCHEMES`.
        solve: PhiFlow's description of the pressure solve.

    Returns:
        `(rows, 2, height, width)`.
    """
    with phiflow(velocity.dtype):
        now = velocity_field(velocity, channel.velocity_grid())
        nu = math.wrap(viscosity(reynolds.to(velocity)), batch("rows"))
        return velocity_array(phiflow_step(now, nu, channel, dt, SCHEMES[advection], solve))


def phiflow_step(
    now: Field, nu: math.Tensor, channel: Channel, dt: float, scheme: Scheme, solve: Solve
) -> Field:
    """The step itself, on PhiFlow's fields."""
    now = diffuse.explicit(now, nu, dt)
    now = scheme(now, now, dt)
    return fluid.make_incompressible(now, channel.geometries, solve)[0]


def one_by_one(velocity: Tensor, reynolds: Tensor, channel: Channel) -> Tensor:
    """`plain_step`, a simulation at a time."""
    steps = [plain_step(velocity[i : i + 1], reynolds[i : i + 1], channel) for i in range(len(velocity))]
    return torch.cat(steps)
