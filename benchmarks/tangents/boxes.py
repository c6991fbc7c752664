"""Boxes around boxes, for problems: rows that fail, numbers of very different sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.failures import FailedRow, Failure, Outcome
from blackbox.wrappers.wrapper import Wrapper
from simulators.state_system import StateSystem


class Failing(Wrapper):
    """What a black box answers, but a share of the rows fails, drawn anew in each call.

    Args:
        box: the black box to wrap, whose policy must be "keep" for training to go on.
        share: of the rows, from 0 to 1.
        seed: the draws'.
    """

    def __init__(self, box: BlackBoxFunction, share: float, seed: int = 0) -> None:
        super().__init__(box)
        self.share, self.seed, self.calls = share, seed, 0
        self.deterministic = False

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """The inner box's answers, less those that fail."""
        generator = torch.Generator().manual_seed(self.seed * 10**9 + self.calls)
        self.calls += 1
        outcome = self.box.run_rows(inputs)
        drawn = torch.rand(len(inputs[0]), generator=generator) < self.share
        for row in drawn.nonzero().flatten().tolist():
            outcome.failed[row] = FailedRow(Failure.RAISED, RuntimeError("drawn to fail"))
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: how many calls have drawn."""
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the call at which `state` was taken."""
        self.calls = state["calls"]


class InUnits(BlackBoxFunction):
    """A system whose state is a vector, each number of it in a unit of its own.

    Args:
        system: with a state `(1, numbers)`.
        units: `(numbers,)`: what the box's numbers are multiples of, in those of the system.
    """

    arrays = "torch"

    def __init__(self, system: StateSystem, units: Tensor) -> None:
        super().__init__(failures=system.failures)
        self.system, self.units = system, units
        self.shape = (len(units),)
        self.inputs = self.outputs = (ArraySpec("state", self.shape),)

    def advance(self, state: Tensor) -> Tensor:
        """What a call does, differentiable: `(rows, numbers)` to the same."""
        units = self.units.to(state)
        return self.system.advance((state * units)[:, None])[:, 0] / units

    def evaluate_rows(self, state: Tensor) -> Tensor:
        """All rows."""
        with torch.no_grad():
            return self.advance(state)

    def start(self, rows: int, seed: int) -> Tensor:
        """The system's start, in these units."""
        return self.system.start(rows, seed)[:, 0] / self.units
