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
    outputs in one of `size_out`, in the order of the specs. All of them are in the box's own units.

    Attributes:
        inputs: the specs of the differentiable inputs.
        outputs: the specs of the differentiable outputs.
        z: `(rows, size_in)`, where the changes start.
        d: `(probes, rows, size_in)`, changes of the input; zero where not valid.
        response: `(probes, rows, size_out)`, changes of the output; zero where not valid.
        valid: `(probes, rows)` bool; False where the base or the probe failed, or nothing changed.
        y: `(rows, size_out)`, the base's outputs, finite in all rows; empty where only changes are known, as
            in listed pairs.
        alive: `(rows,)` bool; False where the base failed. All, if left out.
        others: for each input of the box that models see (`ArraySpec.modelled`) the base's `(rows, *shape)`,
            None in the place of those that are differentiable; empty where that is not known.
        d_scale: `(size_in,)`, the size of a typical change of each input, from `Units`; zero where it has
            not been seen to change. Ones, if left out.
        response_scale: `(size_out,)`, the size of a typical response of each output, from `Units`; zero
            where it has not been seen to respond or vary. Ones, if left out.
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
    d_scale: Tensor = field(default_factory=lambda: torch.empty(0))
    response_scale: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        """Without word of failures none is assumed, and without units all are one."""
        if not len(self.alive):
            alive = torch.ones(len(self.z), dtype=torch.bool, device=self.z.device)
            object.__setattr__(self, "alive", alive)
        for name, like in (("d_scale", self.d), ("response_scale", self.response)):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, like.new_ones(like.shape[-1]))

    def unit(self) -> tuple[Tensor, Tensor]:
        """Changes whose length is one in standard units, and the responses to them; zero where not valid."""
        length = (self.d * reciprocal(self.d_scale)).norm(dim=-1, keepdim=True)
        short = reciprocal(length)
        return self.d * short, self.response * short

    def listed(self) -> CallPairs:
        """The valid pairs one by one: one probe, a row a pair, changes as `unit` has them.

        `z` is then half way along the change: there a quadratic box answers with just its derivative.
        """
        valid = self.valid.nonzero(as_tuple=True)  # a mask would be waited for at each use
        middle = (self.z + self.d / 2)[valid]
        d, response = (tensor[valid][None] for tensor in self.unit())
        rows = valid[1]
        return replace(
            self,
            z=middle,
            d=d,
            response=response,
            valid=torch.ones(d.shape[:2], dtype=torch.bool, device=d.device),
            y=self.y[:0],
            alive=self.alive[:0],
            others=tuple(None if other is None else other[rows] for other in self.others),
        )


def all_listed(calls: Sequence[CallPairs]) -> CallPairs:
    """The valid pairs of several calls of one box, as `CallPairs.listed` has them."""
    lists = [pairs.listed() for pairs in calls if len(pairs.d)] or [calls[0].listed()]
    columns = zip(*(pairs.others for pairs in lists), strict=True)
    return replace(
        lists[0],
        z=torch.cat([pairs.z for pairs in lists]),
        d=torch.cat([pairs.d for pairs in lists], dim=1),
        response=torch.cat([pairs.response for pairs in lists], dim=1),
        valid=torch.cat([pairs.valid for pairs in lists], dim=1),
        alive=lists[0].alive[:0],
        others=tuple(None if column[0] is None else torch.cat(column) for column in columns),
    )


def all_rows(calls: Sequence[CallPairs]) -> CallPairs:
    """The rows of several calls of one box with equally many probes, one call after another."""
    if len(calls) == 1:
        return calls[0]
    columns = zip(*(pairs.others for pairs in calls), strict=True)
    return replace(
        calls[0],
        **{name: torch.cat([getattr(pairs, name) for pairs in calls]) for name in ("z", "y", "alive")},
        **{
            name: torch.cat([getattr(pairs, name) for pairs in calls], dim=1)
            for name in ("d", "response", "valid")
        },
        others=tuple(None if column[0] is None else torch.cat(column) for column in columns),
    )


def sizes(specs: tuple[ArraySpec, ...]) -> list[int]:
    """How many numbers each array of a row has."""
    return [math.prod(spec.shape) for spec in specs]


def without_copies(outputs: Sequence[ArraySpec], answers: list[Tensor]) -> list[Tensor]:
    """What a model learns of the answers of a box's differentiable outputs: not its copies of inputs."""
    specs = [spec for spec in outputs if spec.differentiable]
    if len(specs) != len(answers):
        return answers
    return [answer for spec, answer in zip(specs, answers, strict=True) if spec.learned]


def reciprocal(scale: Tensor) -> Tensor:
    """1 / scale, and zero where that is zero: what has no unit yet has no part in anything."""
    return torch.where(scale > 0, 1 / scale, 0.0)
