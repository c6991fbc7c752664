"""`WakeFlow`: the wake behind a cylinder as a black box, rows stepped together."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from blackbox.checks import check_count
from blackbox.errors import InputError
from blackbox.spec import ArraySpec
from simulators.simulator import Simulator
from simulators.wake_flow.geometry import LARGEST_REYNOLDS, Channel
from simulators.wake_flow.step import Advection, WakeStep

# Cells of all rows stepped at once. On a CPU a velocity of a mebibyte stays in the cache; on small grids more
# than 64 rows gain nothing.
CELLS_AT_ONCE = {"cpu": 2**17, "cuda": 2**23}
MOST_AT_ONCE = {"cpu": 64}


@dataclass(eq=False, repr=False)
class WakeFlow(Simulator):
    """Advance velocities by a number of time steps of the solver.

    Inputs `velocity` `(..., 2, height, width)` and `reynolds` `(...)`; output `velocity`. Units and
    the staggered layout are those of `WakeStep`; `staggered.start` gives a velocity to begin with. No
    gradient comes out of a call, `wake.step` is the differentiable step that it takes.

    Args:
        width: cells across, at least 8; the height is twice that.
        steps: time steps per call.
        dt: time step, in lengths over speed; the cylinder's diameter is 20, the inflow's speed 1.
        advection: "semi-lagrangian" or "mac-cormack".
        max_rows: rows stepped at once; more are taken in turn, which bounds the memory. None for what suits
            the grid: on a CPU as many as stay in its cache, 64 on 32 x 64 and fewer on finer grids; on a GPU
            4,096 on 32 x 64 (velocities of 64 MiB) and fewer on finer grids.
        failures: "raise" or "keep", see `BlackBoxFunction`; a row that blows up is not finite.

    Raises:
        ConfigurationError: a setting is out of its range.
        InputError: in a call, a Reynolds number is above 1e5, not above 0, or so small that explicit
            diffusion would blow up on this grid.
    """

    arrays = "torch"

    width: int = 32
    _: KW_ONLY
    dt: float = 1.0
    advection: Advection = "semi-lagrangian"
    max_rows: int | None = None

    def _prepare(self) -> None:
        """Factorise the pressure operator; `WakeStep` and `Channel` check their settings."""
        if self.max_rows is not None:
            check_count("WakeFlow", "max_rows", self.max_rows)
        self.step = WakeStep(Channel(self.width), self.dt, self.advection)
        self.dt = self.step.dt
        shape = self.step.channel.shape
        self.inputs = (ArraySpec("velocity", shape), ArraySpec("reynolds", (), differentiable=False))
        self.outputs = (ArraySpec("velocity", shape),)

    def evaluate_rows(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """All rows: `(rows, 2, height, width)` and `(rows,)` to `(rows, 2, height, width)`."""
        self._check_reynolds(reynolds)
        after = torch.empty_like(velocity)
        size = self.rows_at_once(velocity.device)
        with torch.no_grad():
            for first in range(0, len(velocity), size):
                chunk = slice(first, first + size)
                after[chunk] = self._advance(velocity[chunk], reynolds[chunk])
        return after

    def rows_at_once(self, device: torch.device) -> int:
        """Rows that are stepped together there."""
        if self.max_rows is not None:
            return self.max_rows
        cells = CELLS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"]
        rows = max(1, cells // (self.step.channel.width * self.step.channel.height))
        return min(rows, MOST_AT_ONCE[device.type]) if device.type in MOST_AT_ONCE else rows

    def _advance(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        for _ in range(self.steps):
            velocity = self.step(velocity, reynolds)
        return velocity

    def _check_reynolds(self, reynolds: Tensor) -> None:
        smallest = self.step.channel.smallest_reynolds(self.step.dt)
        bad = ~((reynolds >= smallest) & (reynolds <= LARGEST_REYNOLDS))
        if bad.any():
            row = int(bad.nonzero()[0])
            raise InputError(
                f"{self!r}, reynolds: expected {smallest:.3g} to {LARGEST_REYNOLDS:g} (U D / nu), "
                f"got {float(reynolds[row]):g} in row {row}. Below that range explicit diffusion is unstable "
                "on this grid: take a smaller dt or fewer cells."
            )

    def __repr__(self) -> str:
        """The settings that make another solver of it."""
        return f"WakeFlow({self.width}, steps={self.steps}, dt={self.dt:g}, advection={self.advection!r})"
