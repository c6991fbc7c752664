"""`ShallowWater`: long waves on a thin layer, which carry a change far within a call."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from simulators.reaction_diffusion import laplacian, waves
from simulators.simulator import count, number
from simulators.state_system import StateSystem, runge_kutta


@dataclass(eq=False, repr=False)
class ShallowWater(StateSystem):
    """`h_t = -div(h u)`, `u_t = -u . grad(u) - g grad(h) - f k x u + nu laplace(u)`, periodic.

    Cells have side 1. The state is `(3, height, width)`: depth h and velocity (u, v) along (x, y), at the
    cells' centres.
    Central differences of second order, classical Runge-Kutta; stable while waves, `sqrt(g h) + |u|` fast,
    cross less than some 1.4 cells in a step. The sum of the depth is conserved. There are no shocks:
    `viscosity` must keep the velocity smooth.

    Args:
        height: cells along y, at least 4.
        width: cells along x, at least 4.
        gravity: g, above 0.
        depth: mean of h in what `start` gives, above 0.
        rotation: f, twice the frame's rate of rotation.
        viscosity: nu, 0 or more.
        dt: time step.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 10.0  # in which the drawn waves part

    height: int = count(16, least=4)
    width: int = count(16, least=4)
    _: KW_ONLY
    gravity: float = number(1.0, above=0)
    depth: float = number(1.0, above=0)
    rotation: float = number(0.2)
    viscosity: float = number(0.05, least=0)
    dt: float = number(0.25, above=0)
    max_rows: int = count(256)

    def _prepare(self) -> None:
        """Depth and both velocities in each cell."""
        self.shape = (3, self.height, self.width)

    def tendency(self, state: Tensor) -> Tensor:
        """Time derivative `(..., 3, height, width)`."""
        h, u, v = state.unbind(-3)
        friction = self.viscosity * laplacian(state[..., 1:, :, :])
        return torch.stack(
            [
                -(slope(h * u, -1) + slope(h * v, -2)),
                self.rotation * v - u * slope(u, -1) - v * slope(u, -2) - self.gravity * slope(h, -1),
                -self.rotation * u - u * slope(v, -1) - v * slope(v, -2) - self.gravity * slope(h, -2),
            ],
            -3,
        ) + torch.cat([torch.zeros_like(friction[..., :1, :, :]), friction], -3)

    def _step(self, state: Tensor) -> Tensor:
        return runge_kutta(self.tendency, state, self.dt)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Hills and valleys of a tenth of the depth, in long waves, and slow currents."""
        drawn = 0.1 * waves(rows, self.shape, generator)
        scale = torch.tensor([self.depth, 1.0, 1.0], dtype=torch.float64)[:, None, None]
        return drawn * scale + torch.tensor([self.depth, 0, 0], dtype=torch.float64)[:, None, None]


def slope(u: Tensor, axis: int) -> Tensor:
    """Central difference around an axis, cells of side 1."""
    return (u.roll(-1, axis) - u.roll(1, axis)) / 2
