"""`CallPairs`: how a box's outputs answered to changes of its inputs, at one call or over a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from blackbox import ArraySpec


@dataclass(frozen=True)
class CallPairs:
    """Pairs (change of the input, change of the output), of the differentiable inputs and outputs alone.

    A row's differentiable inputs are end to end in one vector of `size_in` numbers, its differentiable
    outputs in one of `size_out`, in the order of the specs.

    Attributes:
        inputs, outputs: the differentiable specs.
        z: `(rows, size_in)`, where the changes start.
        d: `(probes, rows, size_in)`, changes of the input; zero where not valid.
        response: `(probes, rows, size_out)`, changes of the output; zero where not valid.
        valid: `(probes, rows)` bool; False where the base or the probe failed, or nothing changed.
        y: `(rows, size_out)`, the base's outputs, finite in all rows; empty where only changes are known, as
            in listed pairs.
        alive: `(rows,)` bool; False where the base failed. All, if left out.
        others: for each input of the box the base's `(rows, *shape)`, None in the place of those that are
            differentiable; empty where that is not known.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    z: Tensor
    d: Tensor
    response: Tensor
    valid: Tensor
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    alive: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    others: tuple[Tensor | None, ...] = ()

    def __post_init__(self) -> None:
        """Without word of failures none is assumed."""
        if not len(self.alive):
            alive = torch.ones(len(self.z), dtype=torch.bool, device=self.z.device)
            object.__setattr__(self, "alive", alive)

    def unit(self) -> tuple[Tensor, Tensor]:
        """Changes of length one, and the responses over the same length; zero where not valid."""
        length = self.d.norm(dim=-1, keepdim=True)
        length = torch.where(length > 0, length, torch.ones_like(length))
        return self.d / length, self.response / length

    def without(self, probe: int) -> CallPairs:
        """The pairs of all probes but one."""
        kept = [other for other in range(len(self.d)) if other != probe]
        return replace(self, d=self.d[kept], response=self.response[kept], valid=self.valid[kept])

    def listed(self) -> CallPairs:
        """The valid pairs one by one: one probe, a row a pair, changes of length one.

        `z` is then half way along the change: there a quadratic box answers with just its derivative.
        """
        middle = (self.z + self.d / 2)[self.valid]
        d, response = (tensor[self.valid][None] for tensor in self.unit())
        valid = torch.ones(d.shape[:2], dtype=torch.bool, device=d.device)
        rows = self.valid.nonzero()[:, 1]
        others = tuple(None if other is None else other[rows] for other in self.others)
        return CallPairs(self.inputs, self.outputs, middle, d, response, valid, others=others)


def together(calls: Sequence[CallPairs]) -> CallPairs:
    """The valid pairs of several calls of one box, as `CallPairs.listed` has them."""
    listed = [pairs.listed() for pairs in calls]
    d, response, valid = (
        torch.cat(column, dim=1) for column in zip(*((p.d, p.response, p.valid) for p in listed), strict=True)
    )
    z = torch.cat([pairs.z for pairs in listed])
    columns = zip(*(pairs.others for pairs in listed), strict=True)
    others = tuple(None if column[0] is None else torch.cat(column) for column in columns)
    return CallPairs(calls[0].inputs, calls[0].outputs, z, d, response, valid, others=others)


def sizes(specs: tuple[ArraySpec, ...]) -> list[int]:
    """How many numbers each array of a row has."""
    return [math.prod(spec.shape) for spec in specs]
