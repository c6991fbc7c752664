"""A call of a box: its inputs and its answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.batches import map_tensors
from zo.errors import TangentError
from zo.tangents.record.before import Before, specs_before
from zo.tangents.record.pairs import CallPairs

Parts: TypeAlias = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class RecordedCall:
    """A call of a box: its inputs and its answers.

    Attributes:
        box: its place among the boxes.
        inputs: one tensor `(rows, *spec.shape)` for each input spec.
        outputs: one tensor `(rows, *spec.shape)` for each output spec.
        added: the dither in each input, `(rows, *spec.shape)`, None for an input without; empty where there
            is none.
        hidden: the part of each output that is withheld from the objective, in the same form.
        before: the values of earlier calls, where the box has a memory.
    """

    box: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    added: Parts = ()
    hidden: Parts = ()
    before: Before | None = None

    def asked(self, place: int) -> Tensor:
        """An input as the objective has it, without dither, `(rows, *spec.shape)`."""
        dither = self.added[place] if self.added else None
        return self.inputs[place] if dither is None else self.inputs[place] - dither

    def answered(self, place: int) -> Tensor:
        """An output as the objective has it, `(rows, *spec.shape)`."""
        response = self.hidden[place] if self.hidden else None
        return self.outputs[place] if response is None else self.outputs[place] - response

    def plain(self) -> RecordedCall:
        """Return the call without its dither."""
        return replace(self, added=(), hidden=())

    def on(self, rows: Tensor, count: int) -> RecordedCall:
        """The call of some rows of the batch, in their order.

        Args:
            rows: `(n,)`, places in the batch.
            count: how many rows the batch has. A call has several rows for each of them where it has further
                leading axes; where it has others, it stays.
        """
        per_row, remainder = divmod(len(self.inputs[0]), count)
        if remainder:
            return self
        rows = rows.to(self.inputs[0].device)
        places = (rows[:, None] * per_row + torch.arange(per_row, device=rows.device)).flatten()
        return map_tensors(lambda tensor: tensor[places], self)

    def pairs(self, box: BlackBoxFunction, alive: Tensor) -> CallPairs:
        """The call as models see it.

        Args:
            box: the one that was called.
            alive: `(batch rows,)` bool; others count as failed.
        """
        z, y = _flat(box.inputs, self.inputs), _flat(box.outputs, self.outputs)
        finite = z.isfinite().all(dim=-1) & y.isfinite().all(dim=-1) & rows_alive(alive, z)
        mask = box.answered(self.outputs)
        if mask is not None:
            finite &= mask.to(finite.device)
        inputs, outputs = (
            tuple(spec for spec in specs if spec.learned) for specs in (box.inputs, box.outputs)
        )
        if self.before is not None:
            z = torch.cat([z, self.before.values.to(z)], dim=1)
            inputs = (*inputs, *specs_before(box, self.before.lags))
            finite = finite & z.isfinite().all(dim=1) & bool(self.before.numbers)
        z, y = (base.nan_to_num(0.0, 0.0, 0.0) for base in (z, y))
        others = tuple(
            None if spec.differentiable else array.nan_to_num(0.0, 0.0, 0.0)
            for spec, array in zip(box.inputs, self.inputs, strict=True)
            if spec.modelled
        )
        return CallPairs(inputs, outputs, z, y, finite, others)


def joined_calls(calls: Sequence[RecordedCall]) -> RecordedCall:
    """Calls of one box and form as one, their rows after one another."""
    inputs, outputs = (
        tuple(torch.cat(parts) for parts in zip(*columns, strict=True))
        for columns in ([call.inputs for call in calls], [call.outputs for call in calls])
    )
    return RecordedCall(calls[0].box, inputs, outputs)


def has_rows(arrays: tuple[Any, ...]) -> bool:
    """Say whether a call has rows: an empty one, as after a mask, has nothing to record or answer."""
    return not arrays or not isinstance(arrays[0], Tensor) or arrays[0].numel() > 0


def refuse_arrays(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> None:
    """Refuse what carries no gradient.

    Raises:
        TangentError: not all of a call's arrays are torch tensors.
    """
    if not all(isinstance(array, Tensor) for array in arrays):
        raise TangentError(
            f"{box!r}: expected torch tensors, got NumPy arrays, through which there is no gradient. "
            "Leave the conversion to the box."
        )


def flat_rows(spec: ArraySpec, tensor: Tensor) -> Tensor:
    """`(*leading, *spec.shape)` to `(rows, *spec.shape)`, detached."""
    return tensor.detach().reshape(tensor.numel() // math.prod(spec.shape), *spec.shape)


def rows_alive(alive: Tensor, rows: Tensor) -> Tensor:
    """Say whether each row of a call belongs to a live row of the batch; all do where counts do not match."""
    per_row, remainder = divmod(len(rows), len(alive))
    if remainder:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    return alive.to(rows.device).repeat_interleave(per_row)


def _flat(specs: tuple[ArraySpec, ...], arrays: tuple[Tensor, ...]) -> Tensor:
    """Differentiable arrays end to end, `(rows, size)`."""
    variables = [array for spec, array in zip(specs, arrays, strict=True) if spec.learned]
    return torch.cat([array[..., None].flatten(1) for array in variables], dim=-1)
