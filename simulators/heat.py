"""`Heat`: the heat equation between cold walls, whose solution is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.simulator import count, number
from simulators.state_system import StateSystem


@dataclass(kw_only=True, eq=False, repr=False)
class Heat(StateSystem):
    """`u_t = conductivity * u_xx` on a rod of length 1 whose ends are held at 0.

    The state is `(1, points)`, temperatures at `x = i / (points + 1)`, i from 1. Crank & Nicolson's method on
    central differences: second order in `dt` and in the distance of the points, stable for any `dt`. A step
    is linear. `exact` is the solution itself, for comparison.

    Args:
        points: between the ends, at least 3.
        conductivity: above 0, in length^2 over time.
        dt: time step.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 0.0  # all that the equation does is forget

    points: int = count(32, least=3)
    conductivity: float = number(1.0, above=0)
    dt: float = number(2e-3, above=0)

    def _prepare(self) -> None:
        """The matrix of a step."""
        self.shape = (1, self.points)
        one = torch.eye(self.points, dtype=torch.float64)
        beside = torch.ones(self.points - 1, dtype=torch.float64)
        laplace = (self.points + 1) ** 2 * (torch.diag(beside, 1) + torch.diag(beside, -1) - 2 * one)
        half = self.dt * self.conductivity / 2 * laplace
        self._tables = (torch.linalg.solve(one - half, one + half),)

    def exact(self, state: Tensor, time: float) -> Tensor:
        """The solution after `time`, from the sine waves that pass through `state` (..., 1, points).

        Each wave sin(n pi x) decays by `exp(-conductivity (n pi)^2 time)`.
        """
        i = torch.arange(1, self.points + 1, dtype=state.dtype, device=state.device)
        sines = (2 / (self.points + 1)) ** 0.5 * torch.sin(math.pi / (self.points + 1) * i[:, None] * i)
        decay = torch.exp(-self.conductivity * (math.pi * i).square() * time)
        return ((state @ sines) * decay) @ sines  # the sine transform is its own inverse

    def _step(self, state: Tensor) -> Tensor:
        return state @ self._tables_for(state)[0].T

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Sums of the five longest waves, or as many as there are points for; the longer, the larger."""
        n = torch.arange(1, min(5, self.points) + 1, dtype=torch.float64)
        draw = torch.randn(rows, 1, len(n), generator=generator, dtype=torch.float64) / n
        x = torch.arange(1, self.points + 1, dtype=torch.float64) / (self.points + 1)
        return draw @ torch.sin(math.pi * n[:, None] * x)
