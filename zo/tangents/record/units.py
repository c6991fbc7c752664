"""`Units`: how much a box's outputs vary, number by number.

A state may hold metres beside pascals. Compared as they are, a number a million times smaller than the others
would have no part in an error: so outputs are compared with what is usual for each number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec
from zo.tangents.record.pairs import CallPairs, sizes

AGE = 50  # steps: what is older has faded from a running mean
TOO_FAR = math.log(
    2.0
)  # a unit is measured again when the running mean is more than twice or under half of it
ROUNDING = 4.0  # a change of fewer units in the last place of its number is none


class Units:
    """The units of one box's outputs, from what its calls show.

    The unit of an output is the root mean square of its variation between the rows and calls of a step. The
    only row of a step varies from the one before.

    They are running geometric means over some fifty steps, so a single step in which a simulation goes astray
    hardly counts. One that is within a factor of two of its mean stays as it is, for what tangents keep is in
    units too. Where an `ArraySpec` has a `scale`, that is the unit.
    """

    def __init__(self) -> None:
        self._running = _Running()
        self._last = torch.empty(0)  # `(1, size_out)`, the last row of the step before

    def measure(self, calls: Sequence[CallPairs]) -> list[CallPairs]:
        """Take in the calls of a step.

        Args:
            calls: the calls of one box, one or more, in the box's own units.

        Returns:
            The calls with their `response_scale`.
        """
        # a mask would be waited for at each use
        alive = torch.cat([pairs.alive for pairs in calls]).nonzero(as_tuple=True)
        y = torch.cat([pairs.y for pairs in calls])[alive]
        last_row = self._last.to(y) if len(y) == 1 and len(self._last) else y[:0]
        self._running.take(_variation(torch.cat([last_row, y])))
        self._last = y[-1:].clone() if len(y) else self._last
        return self.as_before(calls)

    def as_before(self, calls: Sequence[CallPairs]) -> list[CallPairs]:
        """Calls with the units that the steps so far have shown; as they are before the first step."""
        if not len(self._running.scale):
            return list(calls)
        scale = _with_scales(calls[0].outputs, self._running.scale).to(calls[0].z)
        return [replace(pairs, response_scale=scale) for pairs in calls]

    def state_dict(self) -> dict[str, Any]:
        """The running mean, what was last read off it, and the last row."""
        return {"running": self._running.state_dict(), "last": self._last.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._running.load_state_dict(state["running"])
        self._last = state["last"].clone()


class _Running:
    """The running mean of the unit of each of some numbers, and the scale that was last read off it."""

    def __init__(self) -> None:
        self._steps = torch.empty(0)  # in which each number changed or varied
        self._mean = torch.empty(0)  # of the logarithm of its unit, over these
        self.scale = torch.empty(0)  # zero for a number that has not changed or varied yet

    def take(self, size: Tensor) -> None:
        """Take in the unit of each number in a step, `(size,)`; zero for one that did not change or vary."""
        if not len(self.scale):
            self._steps, self._mean, self.scale = torch.zeros(3, len(size), dtype=torch.float64)
        present = (size > 0) & size.isfinite()  # the square of an absurd one may not be
        self._steps += present
        weight = 1 / self._steps.clamp(min=1, max=AGE)
        self._mean = torch.where(present, self._mean + weight * (size.log() - self._mean), self._mean)
        has_unit = self._steps > 0
        too_far = (self._mean - self.scale.log()).abs() > TOO_FAR  # infinitely, where it was zero
        if bool((has_unit & too_far).any()):
            self.scale = torch.where(has_unit, self._mean.exp(), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps.clone(), "mean": self._mean.clone(), "scale": self.scale.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        values = (state[name].to("cpu", copy=True) for name in ("steps", "mean", "scale"))
        self._steps, self._mean, self.scale = values


def _with_scales(specs: tuple[ArraySpec, ...], measured: Tensor) -> Tensor:
    """The unit of each number, `(size,)`: the scale of its spec, or the measured one where it has none."""
    pieces = zip(specs, measured.split(sizes(specs)), strict=True)
    return torch.cat(
        [piece if spec.scale is None else piece.new_tensor(spec.scale) for spec, piece in pieces]
    )


def _variation(values: Tensor) -> Tensor:
    """Return each column's variation between rows, `(size,)` float64 on the CPU; zero for rounding."""
    if not len(values):
        return torch.zeros(values.shape[1], dtype=torch.float64)
    rounding = ROUNDING * torch.finfo(values.dtype).eps * _root_mean_square(values)
    variation = _root_mean_square(values - values.mean(dim=0))
    return torch.where(variation > rounding, variation, 0.0).cpu()


def _root_mean_square(numbers: Tensor) -> Tensor:
    """The root mean square of each column, `(size,)` float64; zero if there are no rows."""
    return (numbers.double().square().sum(dim=0) / max(len(numbers), 1)).sqrt()
