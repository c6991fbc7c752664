"""`RecordedChunk`: what some variants of a step gave, their losses and calls; and many of them joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zo.errors import TangentError
from zo.tangents.step.calls import RecordedCall

Form = tuple[tuple[int, ...], torch.dtype, str]  # of a variant's part of a tensor: shape, dtype, device type


@dataclass(frozen=True)
class Layout:
    """What all variants of a step have in common.

    Attributes:
        calls: for each the place of its box, and the numbers of its inputs and outputs.
        forms: of the losses and of all inputs and outputs, call by call.
    """

    calls: tuple[tuple[int, int, int], ...]
    forms: tuple[Form, ...]

    @property
    def sizes(self) -> list[int]:
        """Bytes of a variant's part of each tensor."""
        return [torch.Size(shape).numel() * dtype.itemsize for shape, dtype, _ in self.forms]


@dataclass(frozen=True)
class RecordedChunk:
    """Losses and calls of consecutive variants.

    Attributes:
        losses: `(variants, rows)`, NaN where a row failed.
        calls: in their order.
    """

    losses: Tensor
    calls: list[RecordedCall]

    @property
    def layout(self) -> Layout:
        """Of its tensors."""
        calls = tuple((call.box, len(call.inputs), len(call.outputs)) for call in self.calls)
        forms = tuple((tuple(t.shape[1:]), t.dtype, t.device.type) for t in self._tensors())
        return Layout(calls, forms)

    def packed(self) -> Tensor:
        """All of it as bytes, `(variants, bytes)`."""
        parts = [tensor.flatten(1).contiguous().view(torch.uint8) for tensor in self._tensors()]
        return torch.cat([part.to(parts[0].device) for part in parts], dim=1)

    @staticmethod
    def unpacked(packed: Tensor, layout: Layout, home: torch.device) -> RecordedChunk:
        """The chunk that `packed` was made of.

        Args:
            packed: `(variants, bytes)` uint8, on any device.
            layout: that it had.
            home: where tensors go that were on a device of its type.
        """
        tensors = []
        for part, (shape, dtype, kind) in zip(packed.split(layout.sizes, dim=1), layout.forms, strict=True):
            own = part.to(home if kind == home.type else kind)
            # A copy, so that numbers lie where they would in a tensor of their own.
            values = own.clone(memory_format=torch.contiguous_format).view(dtype)
            tensors.append(values.reshape(len(packed), *shape))
        return _chunk(layout, tensors)

    @staticmethod
    def joined(chunks: Sequence[RecordedChunk]) -> RecordedChunk:
        """The chunks, all of one layout, as one."""
        if len(chunks) == 1:
            return chunks[0]
        columns = zip(*(chunk._tensors() for chunk in chunks), strict=True)
        return _chunk(chunks[0].layout, [torch.cat(column) for column in columns])

    def _tensors(self) -> list[Tensor]:
        return [self.losses, *(t for call in self.calls for t in (*call.inputs, *call.outputs))]


def one_layout(layouts: Sequence[Layout], variants: int) -> Layout:
    """The layout of all of a step's chunks.

    Raises:
        TangentError: they have several.
    """
    if any(layout != layouts[0] for layout in layouts):
        found = sorted({len(layout.calls) for layout in layouts})
        raise TangentError(
            f"objective: expected the same calls of the boxes for each of {variants} variants, got "
            f"{' or '.join(map(str, found))} calls that differ. Their number, size and dtype must not hang "
            "on the weights."
        )
    return layouts[0]


def _chunk(layout: Layout, tensors: Sequence[Tensor]) -> RecordedChunk:
    following: Iterator[Any] = iter(tensors)
    losses = next(following)
    calls = [
        RecordedCall(
            box, tuple(next(following) for _ in range(given)), tuple(next(following) for _ in range(found))
        )
        for box, given, found in layout.calls
    ]
    return RecordedChunk(losses, calls)
