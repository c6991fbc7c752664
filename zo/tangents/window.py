"""`Window`: what one run of the objective recorded, as the gradient, its check and later replays take it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zo.batches import Batch, bytes_of, emptied, map_tensors, some_rows, tensors
from zo.tangents.pairs import CallPairs
from zo.tangents.recording import RecordedCall


@dataclass(frozen=True)
class Window:
    """What one run of the objective recorded.

    Attributes:
        step: the step that recorded it, from 0.
        batch: the batch of the run: any nesting of tensors with rows first. In the place of each row that
            failed stands one that did not, here and in `calls` and `pairs`.
        calls: the calls of the boxes, in their order, of base and probes.
        pairs: what each call shows a tangent, with the units of its box.
        losses: the losses of the base, `(rows,)`, NaN where a row failed.
        survived: `(rows,)` bool, False where a row failed: the mean loss is over the others.
    """

    step: int
    batch: Batch
    calls: tuple[RecordedCall, ...]
    pairs: tuple[CallPairs, ...]
    losses: Tensor
    survived: Tensor

    @cached_property
    def form(self) -> list[Any]:
        """What calls and batch of windows must have in common for their rows to be joined."""
        rows = len(self.survived)
        calls = [
            (
                call.box,
                call.inputs[0].shape[1] / rows,
                [(t.shape[0], t.shape[2:], t.dtype) for t in tensors(call)],
            )
            for call in self.calls
        ]
        return [calls, [(t.shape[1:], t.dtype) for t in tensors(self.batch)]]

    @cached_property
    def leaves(self) -> str:
        """What the batch holds beside its tensors."""
        return repr(emptied(self.batch, [], lambda tensor: tensor))

    @cached_property
    def places(self) -> Tensor:
        """Rows that survived, `(n,)`, on the CPU."""
        return self.survived.cpu().nonzero().flatten()

    @cached_property
    def size(self) -> int:
        """The bytes that it takes."""
        held = [self.batch, self.losses, *self.calls]
        held += [part for p in self.pairs for part in (p.z, p.y, p.d, p.response, p.others)]
        return sum(bytes_of(tensor) for part in held for tensor in tensors(part))


def without_failed(
    survived: Tensor,
    calls: list[RecordedCall],
    batch: Batch,
) -> tuple[list[RecordedCall], Any]:
    """Put a row that survived in the place of each that did not, for the loss to leave out.

    A NaN times a gradient of zero is a NaN; and taken out altogether, all that is drawn or shaped by the
    number of rows would change.

    Args:
        survived: whether each row survived, `(rows,)` bool.
        calls: as they were recorded.
        batch: tensors with rows first.

    Returns:
        Calls and batch.
    """
    if survived.all():  # the caller may write to the batch later
        return calls, map_tensors(Tensor.clone, batch)
    source = torch.arange(len(survived), device=survived.device)
    source[~survived] = torch.nonzero(survived)[0]
    kept = map_tensors(lambda tensor: some_rows(tensor, source), batch)
    return [call.on(source) for call in calls], kept
