"""Differences of a tensor from its base in each variant: at one entry, in one channel, or anywhere.

A change is one of these, `variants` outermost:

    Entries      one entry of a parameter, as coordinate-wise queries change it
    OneChannel   one channel of an activation in each variant, as a single weight of a layer changes it
    Tensor       `(variants, *shape)`, anywhere

Booleans and integers, as a comparison gives them, change by integers.

Most rules ask for a tensor and get it (`Moved.change`); the others are there for speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from zo.batches import sent
from zo.evaluators.point_rules import places


@dataclass(frozen=True)
class Entries:
    """One changed entry of a tensor in each variant.

    Attributes:
        indices: `(1 + axes, variants)`: the flat index, then the index of each axis.
        steps: `(variants,)` what is added there.
        shape: the shape of the tensor.
    """

    indices: Tensor
    steps: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, entries: Tensor, steps: Tensor, tensor: Tensor) -> Entries:
        """Steps at flat indices `(variants,)` of a tensor; indices are worked out where these are."""
        indices = torch.stack([entries, *places(entries, tensor.shape)])
        return cls(sent(indices, tensor.device), sent(steps, tensor.device, tensor.dtype), tensor.shape)

    @cached_property
    def entries(self) -> Tensor:
        """The flat index of the changed entry in each variant, `(variants,)`."""
        return self.indices[0]

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """`(variants,)` index of each axis."""
        return self.indices[1:].unbind()

    def dense(self) -> Tensor:
        """The same changes as a tensor `(variants, *shape)`, zero elsewhere."""
        whole = self.steps.new_zeros(len(self.entries), self.shape.numel())
        whole.scatter_(1, self.entries[:, None], self.steps[:, None])
        return whole.view(-1, *self.shape)


@dataclass(frozen=True)
class OneChannel:
    """A change in one channel of each variant.

    Attributes:
        values: `(variants, *shape)` with a one at the channel axis.
        channels: which channel each variant has, `(variants,)`.
        axis: the channel axis of the tensor itself, without the variants; not negative.
        size: how many channels the tensor has.
    """

    values: Tensor
    channels: Tensor
    axis: int
    size: int

    def dense(self) -> Tensor:
        """The same changes as a tensor `(variants, *shape)`, zero in the other channels."""
        shape = list(self.values.shape)
        shape[self.axis + 1] = self.size
        whole = self.values.new_zeros(shape)
        every = torch.arange(shape[0], device=self.channels.device)
        whole.movedim(self.axis + 1, 1)[every, self.channels] = self.values.squeeze(self.axis + 1)
        return whole

    def gathered(self, base: Tensor) -> Tensor:
        """The variants' own channels of a base tensor: `(variants, *shape)`, a one at the axis."""
        return base.movedim(self.axis, 0)[self.channels].unsqueeze(self.axis + 1)

    def like(self, values: Tensor) -> OneChannel:
        """Other values in the same channels."""
        return OneChannel(values, self.channels, self.axis, self.size)


Change: TypeAlias = Tensor | Entries | OneChannel


@dataclass(frozen=True)
class Moved:
    """An argument that differs from its base in the variants: what a rule is given in its place.

    Attributes:
        base: the value in the base, `(*shape)`.
        of: its change, in whichever form.
    """

    base: Tensor
    of: Change

    @cached_property
    def change(self) -> Tensor:
        """The change as `(variants, *shape)`."""
        return self.of if isinstance(self.of, Tensor) else self.of.dense()

    @property
    def variants(self) -> int:
        """The number of variants."""
        return variants_of(self.of)

    @property
    def value(self) -> Tensor:
        """Base and change together, `(variants, *shape)`, in the dtype of the base."""
        value = self.base + self.change
        return value if self.base.is_floating_point() else value.to(self.base.dtype)


def variants_of(change: Change) -> int:
    """Return the number of variants of a change."""
    if isinstance(change, Entries):
        return len(change.entries)
    return len(change.values if isinstance(change, OneChannel) else change)


def same_channels(a: Change, b: Change) -> bool:
    """Say whether both are in the same channel of every variant, as far as a GPU need not be waited for."""
    return (
        isinstance(a, OneChannel)
        and isinstance(b, OneChannel)
        and (a.axis, a.size) == (b.axis, b.size)
        and (
            a.channels is b.channels
            or (a.channels.device.type == "cpu" and torch.equal(a.channels, b.channels))
        )
    )


def total(parts: list[Change]) -> Change:
    """The sum of changes of one tensor."""
    first, *rest = parts
    for part in rest:
        if same_channels(first, part):
            assert isinstance(first, OneChannel) and isinstance(part, OneChannel)
            first = first.like(first.values + part.values)
        else:
            first = _dense(first) + _dense(part)
    return first


def _dense(change: Change) -> Tensor:
    return change if isinstance(change, Tensor) else change.dense()


def aligned(change: Tensor, ndim: int) -> Tensor:
    """A change `(variants, *shape)` with ones after the variants, to broadcast against `ndim` axes."""
    return change.reshape(len(change), *[1] * (ndim + 1 - change.ndim), *change.shape[1:])
