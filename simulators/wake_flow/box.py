"""`WakeFlow`: the wake behind obstacles as a black box, rows stepped together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox.errors import ConfigurationError, InputError
from blackbox.failures import FailedRow, Failure, Outcome
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec
from simulators.errors import BlowUpError
from simulators.wake_flow.geometry import CYLINDER, LARGEST_REYNOLDS, Channel
from simulators.wake_flow.obstacles import Obstacle
from simulators.wake_flow.step import Advection, WakeStep

# Cells of all rows stepped at once. On a CPU a velocity of a mebibyte stays in the cache; on small grids more
# than 64 rows gain nothing.
CELLS_AT_ONCE = {"cpu": 2**17, "cuda": 2**23}
MOST_AT_ONCE = {"cpu": 64}


class WakeFlow(BlackBoxFunction):
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
        failures: "raise" or "keep", see `BlackBoxFunction`. Of a row that blows up the failure says with
            which Reynolds number and in which step of the call; it costs the row a second run.
        obstacles: what stands in the stream, `Cylinder` and `Box` in any number, instead of the
            published cylinder; Reynolds numbers still count with its diameter. () is for none.
        device: where rows are stepped, such as "cuda"; None for where the inputs are. Answers come back to
            the inputs' device.

    Raises:
        ConfigurationError: a setting is out of its range, the grid cannot hold the obstacles, or the device
            is not there.
        InputError: in a call, a Reynolds number is above 1e5, not above 0, or so small that explicit
            diffusion would blow up on this grid.
    """

    arrays = "torch"

    def __init__(
        self,
        width: int = 32,
        *,
        steps: int = 1,
        dt: float = 1.0,
        advection: Advection = "semi-lagrangian",
        max_rows: int | None = None,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
        obstacles: Sequence[Obstacle] = (CYLINDER,),
        device: str | None = None,
    ) -> None:
        """Check the settings and factorise the pressure operator."""
        for name, value in (("steps", steps), ("max_rows", 1 if max_rows is None else max_rows)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"WakeFlow, {name}: expected a whole number above 0, got {value!r}.")
        self.step = WakeStep(Channel(width, obstacles), dt, advection)
        self.steps, self.max_rows, self.device = steps, max_rows, _checked(device)
        shape = self.step.channel.shape
        self.inputs = (ArraySpec("velocity", shape), ArraySpec("reynolds", (), differentiable=False))
        self.outputs = (ArraySpec("velocity", shape),)
        super().__init__(failures=failures)

    @property
    def width(self) -> int:
        """Cells across."""
        return self.step.channel.width

    def evaluate_rows(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """All rows: `(rows, 2, height, width)` and `(rows,)` to `(rows, 2, height, width)`."""
        self._check_reynolds(reynolds)
        after = torch.empty_like(velocity)
        device = self._where(velocity)
        with torch.no_grad():
            for chunk in self._chunks(len(velocity), device):
                after[chunk] = self._advance(velocity[chunk].to(device), reynolds[chunk].to(device))
        return after

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run rows, and say of those that blew up in which step and with which Reynolds number."""
        outcome = super().run_rows(inputs)
        blown = [row for row, why in outcome.failed.items() if why == FailedRow(Failure.NON_FINITE)]
        if blown:
            velocity, reynolds = (t[blown] for t in inputs)
            survived = self._steps_survived(velocity, reynolds).tolist()
            for row, re, steps in zip(blown, reynolds.tolist(), survived, strict=True):
                outcome.failed[row] = FailedRow(
                    Failure.NON_FINITE, BlowUpError(f"Re {re:g} blew up in step {steps + 1} of {self.steps}")
                )
        return outcome

    def rows_at_once(self, device: torch.device) -> int:
        """Rows that are stepped together there."""
        if self.max_rows is not None:
            return self.max_rows
        cells = CELLS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"]
        rows = max(1, cells // (self.step.channel.width * self.step.channel.height))
        return min(rows, MOST_AT_ONCE[device.type]) if device.type in MOST_AT_ONCE else rows

    def _chunks(self, rows: int, device: torch.device) -> Iterator[slice]:
        size = self.rows_at_once(device)
        return (slice(first, first + size) for first in range(0, rows, size))

    def _where(self, velocity: Tensor) -> torch.device:
        return velocity.device if self.device is None else torch.device(self.device)

    def _advance(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        for _ in range(self.steps):
            velocity = self.step(velocity, reynolds)
        return velocity

    def _steps_survived(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """Of rows that failed: steps `(rows,)` after which they were still finite, fewer than there are.

        The rows run again, since looking at every step of those that do not fail would cost all calls.
        """
        survived = torch.zeros(len(velocity), dtype=torch.int64, device=velocity.device)
        device = self._where(velocity)
        with torch.no_grad():
            for chunk in self._chunks(len(velocity), device):
                now, numbers = velocity[chunk].to(device), reynolds[chunk].to(device)
                for _ in range(self.steps - 1):
                    now = self.step(now, numbers)
                    survived[chunk] += now.isfinite().flatten(1).all(1).to(survived.device)
        return survived

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone; the factorisation is rebuilt."""
        settings = {
            "steps": self.steps,
            "dt": self.step.dt,
            "advection": self.step.advection,
            "max_rows": self.max_rows,
            "failures": self.failures,
            "obstacles": self.step.channel.obstacles,
            "device": self.device,
        }
        return _rebuild, (type(self), self.width, settings)

    def __repr__(self) -> str:
        """The settings that make another solver of it."""
        step = f"dt={self.step.dt:g}, advection={self.step.advection!r}"
        obstacles = self.step.channel.obstacles
        others = "" if obstacles == (CYLINDER,) else f", obstacles={obstacles}"
        return f"WakeFlow({self.width}, steps={self.steps}, {step}{others})"


def _checked(device: str | None) -> str | None:
    """The device, known to be there."""
    try:
        there = device is None or torch.empty(1, device=device).numel() == 1
    except (RuntimeError, AssertionError, TypeError):  # the second from a torch that has no CUDA
        there = False
    if not there:
        raise ConfigurationError(
            f"WakeFlow, device: expected one that torch can use, got {device!r}. Take 'cpu', or leave it out."
        )
    return device


def _rebuild(kind: type[WakeFlow], width: int, settings: dict[str, Any]) -> WakeFlow:
    return kind(width, **settings)
