"""`CallPairs`: how a box's outputs answered to changes of its inputs, at one call or over a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    z: Tensor
    d: Tensor
    response: Tensor
    valid: Tensor

    def unit(self) -> tuple[Tensor, Tensor]:
        """Changes of length one, and the responses over the same length; zero where not valid."""
        length = self.d.norm(dim=-1, keepdim=True)
        length = torch.where(length > 0, length, torch.ones_like(length))
        return self.d / length, self.response / length

    def without(self, probe: int) -> CallPairs:
        """The pairs of all probes but one."""
        kept = [other for other in range(len(self.d)) if other != probe]
        return self._like(self.z, self.d[kept], self.response[kept], self.valid[kept])

    def listed(self) -> CallPairs:
        """The valid pairs one by one: one probe, a row a pair, changes of length one.

        `z` is then half way along the change: there a quadratic box answers with just its derivative.
        """
        middle = (self.z + self.d / 2)[self.valid]
        d, response = (tensor[self.valid][None] for tensor in self.unit())
        return self._like(middle, d, response, torch.ones(d.shape[:2], dtype=torch.bool, device=d.device))

    def _like(self, z: Tensor, d: Tensor, response: Tensor, valid: Tensor) -> CallPairs:
        return CallPairs(self.inputs, self.outputs, z, d, response, valid)


def together(calls: Sequence[CallPairs]) -> CallPairs:
    """The valid pairs of several calls of one box, as `CallPairs.listed` has them."""
    listed = [pairs.listed() for pairs in calls]
    d, response, valid = (
        torch.cat(column, dim=1) for column in zip(*((p.d, p.response, p.valid) for p in listed), strict=True)
    )
    z = torch.cat([pairs.z for pairs in listed])
    return CallPairs(calls[0].inputs, calls[0].outputs, z, d, response, valid)


def sizes(specs: tuple[ArraySpec, ...]) -> list[int]:
    """How many numbers each array of a row has."""
    return [math.prod(spec.shape) for spec in specs]
