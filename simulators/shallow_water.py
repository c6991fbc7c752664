"""`ShallowWater`: long waves on a thin layer, which carry a change far within a call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number, check_positive
from simulators.reaction_diffusion import laplacian, waves
from simulators.state_system import StateSystem, runge_kutta


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

    def __init__(
        self,
        height: int = 16,
        width: int = 16,
        *,
        gravity: float = 1.0,
        depth: float = 1.0,
        rotation: float = 0.2,
        viscosity: float = 0.05,
        dt: float = 0.25,
        steps: int = 1,
        max_rows: int = 256,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings."""
        name = "ShallowWater"
        for side, cells in (("height", height), ("width", width)):
            check_count(name, side, cells, least=4)
        for positive, value in (("gravity", gravity), ("depth", depth), ("dt", dt)):
            check_positive(name, positive, value)
        check_number(name, "rotation", rotation)
        check_number(name, "viscosity", viscosity, least=0)
        self.gravity, self.depth, self.rotation = float(gravity), float(depth), float(rotation)
        self.viscosity, self.dt = float(viscosity), float(dt)
        settings = {
            "height": height,
            "width": width,
            "gravity": self.gravity,
            "depth": self.depth,
            "rotation": self.rotation,
            "viscosity": self.viscosity,
            "dt": self.dt,
        }
        super().__init__((3, height, width), settings, steps=steps, max_rows=max_rows, failures=failures)

    @property
    def spin_up(self) -> int:
        """The steps of 10 time units, in which the drawn waves part."""
        return math.ceil(10 / self.dt)

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
