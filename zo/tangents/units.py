"""`Units`: how large changes of a box's inputs and responses of its outputs are, number by number.

A state may hold metres beside pascals. Compared as they are, a number a million times smaller than the others
would have no part in a fit, nor in its error: so tangents compare changes with what is usual for each number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zo.tangents.pairs import CallPairs

AGE = 50  # steps: what is older has faded from a running mean
TOO_FAR = math.log(2.0)  # a unit is read anew when the running mean is more than twice or under half of it
ROUNDING = 4.0  # a change of fewer units in the last place of its number is none


class Units:
    """The units of one box, from what its calls show.

    The unit of an input is the running mean of its changes' root mean square over a step; that of an output
    is the running mean of its responses' root mean square, or, in steps without probes, of the distances of
    its values from their mean in a call. The mean is a geometric one, over some fifty steps, so a single step
    in which a simulation goes astray hardly counts. A unit that is within a factor of two of its mean stays
    as it is, for what tangents keep is in units too.
    """

    def __init__(self) -> None:
        self._changes, self._responses = _Running(), _Running()

    def measure(self, calls: Sequence[CallPairs]) -> list[CallPairs]:
        """Take in the calls of a step.

        Args:
            calls: of one box, one or more, in the box's own units.

        Returns:
            The calls with their `d_scale` and `response_scale`.
        """
        z, y = (torch.cat([getattr(pairs, name) for pairs in calls]) for name in ("z", "y"))
        moved = torch.cat([pairs.d[pairs.valid] for pairs in calls])
        self._changes.take(moved, like=z)
        if any(len(pairs.d) for pairs in calls):
            answered = torch.cat([pairs.response[pairs.valid] for pairs in calls])
        else:
            alive = [pairs.y[pairs.alive] for pairs in calls]
            answered = torch.cat([values - values.mean(dim=0) for values in alive])
        self._responses.take(answered, like=y)
        d_scale, response_scale = (own.scale.to(z) for own in (self._changes, self._responses))
        return [replace(pairs, d_scale=d_scale, response_scale=response_scale) for pairs in calls]

    def state_dict(self) -> dict[str, Any]:
        """The running means and what was last read off them."""
        return {"changes": self._changes.state_dict(), "responses": self._responses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._changes.load_state_dict(state["changes"])
        self._responses.load_state_dict(state["responses"])


class _Running:
    """The running mean of the size of each of some numbers, and the scale that was last read off it."""

    def __init__(self) -> None:
        self._steps = torch.empty(0)  # in which each number changed
        self._mean = torch.empty(0)  # of the logarithm of its size, over these
        self.scale = torch.empty(0)  # zero for a number that has not changed yet

    def take(self, values: Tensor, like: Tensor) -> None:
        """Take in a step's `(n, size)`; `like` are numbers `(rows, size)` that round as these do."""
        if not len(self.scale):
            self._steps, self._mean, self.scale = torch.zeros(3, values.shape[1], dtype=torch.float64)
        if not len(values):
            return
        size, rounding = (each.double().square().mean(dim=0).sqrt().cpu() for each in (values, like))
        seen = size > ROUNDING * torch.finfo(like.dtype).eps * rounding
        self._steps += seen
        weight = 1 / self._steps.clamp(min=1, max=AGE)
        self._mean = torch.where(seen, self._mean + weight * (size.log() - self._mean), self._mean)
        known = self._steps > 0
        too_far = (self._mean - self.scale.log()).abs() > TOO_FAR  # infinitely, where it was zero
        if bool((known & too_far).any()):
            self.scale = torch.where(known, self._mean.exp(), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps.clone(), "mean": self._mean.clone(), "scale": self.scale.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._mean, self.scale = (state[name].clone() for name in ("steps", "mean", "scale"))
