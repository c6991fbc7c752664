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

from blackbox import ArraySpec
from zo.tangents.record.pairs import CallPairs, sizes

AGE = 50  # steps: what is older has faded from a running mean
TOO_FAR = math.log(
    2.0
)  # a unit is measured again when the running mean is more than twice or under half of it
ROUNDING = 4.0  # a change of fewer units in the last place of its number is none


class Units:
    """The units of one box, from what its calls show.

    The unit of an input is the root mean square of its changes over a step, and that of an output the root
    mean square of its responses. An output that responds little for how much it varies between the rows and
    calls of a step, as far from where the network acts, is not one in small units: it has at least the unit
    that its variation is in responses, at the median ratio of the two. Without probes, its unit is its
    variation. The only row of a step varies from the one before.

    They are running geometric means over some fifty steps, so a single step in which a simulation goes astray
    hardly counts. One that is within a factor of two of its mean stays as it is, for what tangents keep is in
    units too. Where an `ArraySpec` has a `scale`, that is the unit.
    """

    def __init__(self) -> None:
        self._changes, self._responses = _Running(), _Running()
        self._last = torch.empty(0)  # `(1, size_out)`, the last row of the step before

    def measure(self, calls: Sequence[CallPairs]) -> list[CallPairs]:
        """Take in the calls of a step.

        Args:
            calls: the calls of one box, one or more, in the box's own units.

        Returns:
            The calls with their `d_scale` and `response_scale`.
        """
        # a mask would be waited for at each use
        alive = torch.cat([pairs.alive for pairs in calls]).nonzero(as_tuple=True)
        z, y = (torch.cat([getattr(pairs, name) for pairs in calls])[alive] for name in ("z", "y"))
        probes = [(pairs, pairs.valid.nonzero(as_tuple=True)) for pairs in calls if len(pairs.d)]
        changes, responses = (
            torch.cat([none, *(getattr(pairs, name)[places] for pairs, places in probes)])
            for name, none in (("d", z[:0]), ("response", y[:0]))
        )
        self._changes.take(_sizes(changes, z))
        before = self._last.to(y) if len(y) == 1 and len(self._last) else y[:0]
        self._responses.take(_sizes(responses, torch.cat([before, y]), varied=True))
        self._last = y[-1:].clone() if len(y) else self._last
        return self.as_before(calls)

    def as_before(self, calls: Sequence[CallPairs]) -> list[CallPairs]:
        """Calls with the units that the steps so far have shown; as they are before the first step."""
        if not len(self._changes.scale):
            return list(calls)
        z = calls[0].z
        d_scale = _with_scales(calls[0].inputs, self._changes.scale).to(z)
        response_scale = _with_scales(calls[0].outputs, self._responses.scale).to(z)
        return [replace(pairs, d_scale=d_scale, response_scale=response_scale) for pairs in calls]

    def state_dict(self) -> dict[str, Any]:
        """The running means, what was last read off them, and the last row."""
        return {
            "changes": self._changes.state_dict(),
            "responses": self._responses.state_dict(),
            "last": self._last.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._changes.load_state_dict(state["changes"])
        self._responses.load_state_dict(state["responses"])
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
        before = self._steps > 0
        too_far = (self._mean - self.scale.log()).abs() > TOO_FAR  # infinitely, where it was zero
        if bool((before & too_far).any()):
            self.scale = torch.where(before, self._mean.exp(), 0.0)

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


def _sizes(changes: Tensor, values: Tensor, varied: bool = False) -> Tensor:
    """How large a step's changes `(n, size)` of base values `(rows, size)` are, number by number.

    Args:
        changes: the changes of the values; there may be none.
        values: the values of the base. What is not larger than their rounding counts as zero.
        varied: whether numbers that change little for how much they vary count for more.

    Returns:
        `(size,)` float64, on the CPU.
    """
    if not len(changes) and not varied:
        return torch.zeros(values.shape[1], dtype=torch.float64)
    rounding = ROUNDING * torch.finfo(values.dtype).eps * _root_mean_square(values)
    size = _root_mean_square(changes)
    size = torch.where(size > rounding, size, 0.0)
    if not varied or not len(values):
        return size.cpu()
    variation = _root_mean_square(values - values.mean(dim=0))
    size, variation = torch.stack([size, torch.where(variation > rounding, variation, 0.0)]).cpu()
    both = (size > 0) & (variation > 0)
    share = (size[both] / variation[both]).median() if both.any() else 1.0
    return torch.maximum(size, share * variation)


def _root_mean_square(numbers: Tensor) -> Tensor:
    """The root mean square of each column, `(size,)` float64; zero if there are no rows."""
    return (numbers.double().square().sum(dim=0) / max(len(numbers), 1)).sqrt()
