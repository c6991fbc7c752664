"""`CallPairs`: the inputs of a box at the rows of a call, and its answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from blackbox import ArraySpec


@dataclass(frozen=True)
class CallPairs:
    """Pairs of input and output, row by row, of the differentiable inputs and outputs alone.

    A row's differentiable inputs are end to end in one vector of `size_in` numbers, its differentiable
    outputs in one of `size_out`, in the order of the specs. All of them are in the box's own units.

    Attributes:
        inputs: the specs of the differentiable inputs.
        outputs: the specs of the differentiable outputs.
        z: the inputs, `(rows, size_in)`.
        y: the outputs, `(rows, size_out)`, finite in all rows; empty where they are not known.
        alive: `(rows,)` bool; False where the row failed. All are True if left out.
        others: for each input of the box that models see (`ArraySpec.modelled`) its `(rows, *shape)`, or None
            for a differentiable one; empty where they are not known.
        response_scale: `(size_out,)`, the usual size of each output, from `Units`; zero where the output has
            not varied yet. Ones if left out.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    z: Tensor
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    alive: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    others: tuple[Tensor | None, ...] = ()
    response_scale: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        """Assume no failures where `alive` is empty, and units of one where `response_scale` is."""
        if not len(self.alive):
            alive = torch.ones(len(self.z), dtype=torch.bool, device=self.z.device)
            object.__setattr__(self, "alive", alive)
        if not len(self.response_scale):
            object.__setattr__(self, "response_scale", self.z.new_ones(sum(sizes(self.outputs))))

    def some(self, places: Tensor) -> CallPairs:
        """Some of the rows, `(n,)`."""
        others = tuple(None if array is None else array[places] for array in self.others)
        y = self.y[places] if len(self.y) else self.y
        return replace(self, z=self.z[places], y=y, alive=self.alive[places], others=others)


def all_rows(calls: Sequence[CallPairs]) -> CallPairs:
    """The rows of several calls of one box, one call after another."""
    if len(calls) == 1:
        return calls[0]
    columns = zip(*(pairs.others for pairs in calls), strict=True)
    return replace(
        calls[0],
        **{name: torch.cat([getattr(pairs, name) for pairs in calls]) for name in ("z", "y", "alive")},
        others=tuple(None if column[0] is None else torch.cat(column) for column in columns),
    )


def sizes(specs: tuple[ArraySpec, ...]) -> list[int]:
    """Return the count of numbers in a row of each array."""
    return [math.prod(spec.shape) for spec in specs]


def without_copies(outputs: Sequence[ArraySpec], answers: list[Tensor]) -> list[Tensor]:
    """Return the answers of differentiable outputs that a model learns, without copies of inputs."""
    specs = [spec for spec in outputs if spec.differentiable]
    if len(specs) != len(answers):
        return answers
    return [answer for spec, answer in zip(specs, answers, strict=True) if spec.learned]


def reciprocal(scale: Tensor) -> Tensor:
    """1 / scale, and zero where that is zero: what has no unit yet has no part in anything."""
    return torch.where(scale > 0, 1 / scale, 0.0)
