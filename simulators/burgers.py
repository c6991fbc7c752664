"""`Burgers1D`: viscous Burgers on a ring, advected and diffused by PhiFlow; values alone, no derivative."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from phi import math as phiml
from phi.field import CenteredGrid, Field
from phi.geom import Box
from phi.math import NUMPY, batch, channel, extrapolation, spatial
from phi.physics import advect, diffuse
from torch import Tensor

from blackbox.checks import check_count
from blackbox.spec import ArraySpec
from simulators.simulator import Simulator, count, number
from simulators.wake_flow.geometry import ALONE

WAVES = 4  # of a state to start with
RING: Any = Box(x=1.0)  # pyright: ignore[reportCallIssue]  (PhiFlow takes any names of axes)


@dataclass(kw_only=True, eq=False, repr=False)
class Burgers1D(Simulator):
    """`u_t + u u_x = viscosity * u_xx` on a ring of length 1, by PhiFlow as its users run it.

    The state is `(1, points)`, values at the cells' centres. Each step is PhiFlow's semi-Lagrangian
    advection, then its explicit diffusion in as many substeps as are stable: first order in the step and,
    through the interpolation, in the cell. PhiFlow runs with NumPy, all rows of a call in one batch, and a
    step takes some 10 ms for few or hundreds of rows: a small stand-in for a solver that one can only call.
    There is no `step` with a derivative.

    Args:
        points: cells around the ring, at least 8.
        viscosity: in length^2 over time; shocks are some `viscosity / u` wide.
        dt: time step.
        steps: time steps per call.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    points: int = count(64, least=8)
    viscosity: float = number(0.005, above=0)
    dt: float = number(0.01, above=0)

    def _prepare(self) -> None:
        """Count the substeps."""
        self.shape = (1, self.points)
        self.inputs = self.outputs = (ArraySpec("state", self.shape),)
        # with a factor of 2 at the limit of stability
        self.substeps = math.ceil(2.5 * self.viscosity * self.dt * self.points**2)

    def evaluate_rows(self, state: np.ndarray) -> np.ndarray:
        """All rows: `(rows, 1, points)` to `(rows, 1, points)`."""
        # PhiFlow's precision and backend are global.
        with ALONE, NUMPY, phiml.precision(8 * state.itemsize):
            velocity = self._field(state[:, 0])
            for _ in range(self.steps):
                velocity = advect.semi_lagrangian(velocity, velocity, self.dt)
                velocity = diffuse.explicit(velocity, self.viscosity, self.dt, substeps=self.substeps)
            values: Any = velocity.values
            return values.numpy("rows,vector,x")

    def start(self, rows: int, seed: int) -> Tensor:
        """Sums of four long waves `(rows, 1, points)`, float32; shocks form within half a time unit.

        Raises:
            ConfigurationError: `rows` is no whole number above 0, or `seed` none of 0 or more.
        """
        check_count("Burgers1D.start", "rows", rows)
        check_count("Burgers1D.start", "seed", seed, least=0)
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(rows, 1, 2 * WAVES, generator=generator, dtype=torch.float64) / 2
        x = (torch.arange(self.points, dtype=torch.float64) + 0.5) / self.points
        phases = 2 * math.pi * torch.arange(1, WAVES + 1, dtype=torch.float64)[:, None] * x
        return (draw @ torch.cat([torch.sin(phases), torch.cos(phases)])).float()

    def _field(self, values: np.ndarray) -> Field:
        wrapped = phiml.wrap(values[..., None], batch("rows"), spatial("x"), channel(vector="x"))
        return CenteredGrid(wrapped, extrapolation.PERIODIC, bounds=RING)
