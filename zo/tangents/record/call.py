"""A call of a box: what it was asked and answered, of the base and of the probes of a step."""

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
from zo.tangents.record.pairs import CallPairs

Parts: TypeAlias = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class RecordedCall:
    """A call of a box, by the base (the first variant) and by the probes.

    Attributes:
        box: its place among the boxes.
        inputs: one tensor `(variants, rows, *spec.shape)` for each input spec.
        outputs: one tensor `(variants, rows, *spec.shape)` for each output spec.
        added: the dither in each input, `(1, rows, *spec.shape)` for all variants, None for an input without;
            empty where there is none.
        hidden: what the objective is not given of each output, in the same form.
    """

    box: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    added: Parts = ()
    hidden: Parts = ()

    def asked(self, place: int) -> Tensor:
        """An input of the base as the objective has it, without dither, `(rows, *spec.shape)`."""
        dither = self.added[place] if self.added else None
        return self.inputs[place][0] if dither is None else self.inputs[place][0] - dither[0]

    def answered(self, place: int) -> Tensor:
        """An output of the base as the objective has it, `(rows, *spec.shape)`."""
        response = self.hidden[place] if self.hidden else None
        return self.outputs[place][0] if response is None else self.outputs[place][0] - response[0]

    def plain(self) -> RecordedCall:
        """What the box was asked and answered, and no word of dither."""
        return replace(self, added=(), hidden=())

    def on(self, rows: Tensor, count: int) -> RecordedCall:
        """The call of some rows of the batch, in their order.

        Args:
            rows: `(n,)`, places in the batch.
            count: how many rows the batch has. A call has several rows for each of them where it has further
                leading axes; where it has others, it stays.
        """
        per_row, rest = divmod(self.inputs[0].shape[1], count)
        if rest:
            return self
        rows = rows.to(self.inputs[0].device)
        places = (rows[:, None] * per_row + torch.arange(per_row, device=rows.device)).flatten()
        return map_tensors(lambda tensor: tensor[:, places], self)

    def pairs(self, box: BlackBoxFunction, alive: Tensor) -> CallPairs:
        """What the probes of this call say about the box.

        Args:
            box: the one that was called.
            alive: `(batch rows,)` bool; pairs of other rows are not valid.
        """
        z, d, nothing_else = _changes(box.inputs, self.inputs)
        y, response, _ = _changes(box.outputs, self.outputs)
        finite = z.isfinite().all(dim=-1) & y.isfinite().all(dim=-1) & rows_alive(alive, z)
        mask = box.answered(tuple(output[0] for output in self.outputs))
        if mask is not None:
            finite &= mask.to(finite.device)
        valid = nothing_else
        if len(d):
            valid = d.isfinite().all(dim=-1) & response.isfinite().all(dim=-1) & nothing_else & finite
            valid &= (d != 0).any(dim=-1)  # at the first call, say, nothing has changed yet
            d, response = (torch.where(valid[..., None], changes, 0.0) for changes in (d, response))
        inputs, outputs = (
            tuple(spec for spec in specs if spec.learned) for specs in (box.inputs, box.outputs)
        )
        z, y = (base.nan_to_num(0.0, 0.0, 0.0) for base in (z, y))
        others = tuple(
            None if spec.differentiable else array[0].nan_to_num(0.0, 0.0, 0.0)
            for spec, array in zip(box.inputs, self.inputs, strict=True)
            if spec.modelled
        )
        return CallPairs(inputs, outputs, z, d, response, valid, y, finite, others)

    def failed(self, alive: Tensor) -> Tensor:
        """Which probes failed here, `(probes, rows)` bool, over the rows that did not fail in the base.

        Args:
            alive: whether each row of the batch is alive, `(batch rows,)` bool.
        """
        if len(self.outputs[0]) == 1:
            return torch.zeros(0, 0, dtype=torch.bool, device=alive.device)
        by_output = [output[..., None].flatten(2).isfinite().all(dim=2) for output in self.outputs]
        finite = torch.stack(by_output).all(dim=0)
        return ~finite[1:, finite[0] & rows_alive(alive, finite[0])]


def joined_calls(calls: Sequence[RecordedCall], dim: int) -> RecordedCall:
    """Calls of one box and form as one: variants (0) or rows (1) after one another."""
    inputs, outputs = (
        tuple(torch.cat(parts, dim=dim) for parts in zip(*columns, strict=True))
        for columns in ([call.inputs for call in calls], [call.outputs for call in calls])
    )
    first = calls[0]
    whole = RecordedCall(first.box, inputs, outputs)
    return whole if dim else replace(whole, added=first.added, hidden=first.hidden)


def has_rows(arrays: tuple[Any, ...]) -> bool:
    """Whether a call has rows: one without, as of a mask that takes none, has nothing to record or answer."""
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
    """Whether each row of a call belongs to a live row of the batch; all do where a call has others."""
    per_row, rest = divmod(len(rows), len(alive))
    if rest:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    return alive.to(rows.device).repeat_interleave(per_row)


def _changes(specs: tuple[ArraySpec, ...], arrays: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiable arrays end to end, and what probes change of them.

    Returns:
        The base `(rows, size)`, its changes `(probes, rows, size)`, and where all else stayed as it was,
        `(probes, rows)` bool.
    """
    flat = [array[..., None].flatten(2) for array in arrays]
    variables = [array for spec, array in zip(specs, flat, strict=True) if spec.learned]
    context = [array for spec, array in zip(specs, flat, strict=True) if spec.context]
    whole = torch.cat(variables, dim=-1)
    same = torch.ones(whole.shape[:2], dtype=torch.bool, device=whole.device)[1:]
    for array in context:
        same &= (array[1:] == array[0]).all(dim=-1)
    return whole[0], whole[1:] - whole[0], same
