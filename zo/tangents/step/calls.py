"""`RecordedCall`: one call of a box in the chain, of the base and all probes, and the pairs in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents.pairs import CallPairs


@dataclass(frozen=True)
class RecordedCall:
    """One call in the chain, of the base (the first variant) and of the probes.

    Attributes:
        box: its place among the boxes.
        inputs, outputs: one tensor `(variants, rows, *spec.shape)` for each spec.
    """

    box: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def on(self, rows: Tensor) -> RecordedCall:
        """The call with rows of the batch replaced by others of it.

        Args:
            rows: `(batch rows,)`, for each the one that takes its place. A call has several rows for each
                row of the batch where it has further leading axes; where it has others, it stays.
        """
        each, rest = divmod(self.inputs[0].shape[1], len(rows))
        if rest:
            return self
        rows = rows.to(self.inputs[0].device)
        places = (rows[:, None] * each + torch.arange(each, device=rows.device)).flatten()
        inputs, outputs = (tuple(t[:, places] for t in group) for group in (self.inputs, self.outputs))
        return RecordedCall(self.box, inputs, outputs)

    def pairs(self, box: BlackBoxFunction, alive: Tensor) -> CallPairs:
        """What the probes of this call say about the box.

        Args:
            box: the one that was called.
            alive: `(batch rows,)` bool; pairs of other rows are not valid.
        """
        z, d, nothing_else = _changes(box.inputs, self.inputs)
        y, response, _ = _changes(box.outputs, self.outputs)
        kept = z.isfinite().all(dim=-1) & y.isfinite().all(dim=-1)
        each, rest = divmod(z.shape[0], len(alive))
        valid = d.isfinite().all(dim=-1) & response.isfinite().all(dim=-1) & nothing_else
        valid &= (d != 0).any(dim=-1)  # at the first call, say, nothing has changed yet
        if not rest:
            kept &= alive.to(kept.device).repeat_interleave(each)
        valid &= kept
        d, response = (torch.where(valid[..., None], changes, 0.0) for changes in (d, response))
        inputs, outputs = (
            tuple(spec for spec in specs if spec.differentiable) for specs in (box.inputs, box.outputs)
        )
        z, y = (base.nan_to_num(0.0, 0.0, 0.0) for base in (z, y))
        others = tuple(
            None if spec.differentiable else given[0].nan_to_num(0.0, 0.0, 0.0)
            for spec, given in zip(box.inputs, self.inputs, strict=True)
        )
        return CallPairs(inputs, outputs, z, d, response, valid, y, kept, others)

    def failed(self, alive: Tensor) -> Tensor:
        """Which probes failed here, `(probes, rows)` bool, over the rows that did not fail in the base.

        Args:
            alive: `(batch rows,)` bool.
        """
        each_output = [output[..., None].flatten(2).isfinite().all(dim=2) for output in self.outputs]
        finite = torch.stack(each_output).all(dim=0)
        each, rest = divmod(finite.shape[1], len(alive))
        rows = finite[0] if rest else finite[0] & alive.to(finite.device).repeat_interleave(each)
        return ~finite[1:, rows]


def _changes(specs: tuple[ArraySpec, ...], arrays: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiable arrays end to end, and what probes change of them.

    Returns:
        The base `(rows, size)`, its changes `(probes, rows, size)`, and where all else stayed as it was,
        `(probes, rows)` bool.
    """
    flat = [array[..., None].flatten(2) for array in arrays]
    moving = [array for spec, array in zip(specs, flat, strict=True) if spec.differentiable]
    fixed = [array for spec, array in zip(specs, flat, strict=True) if not spec.differentiable]
    whole = torch.cat(moving, dim=-1)
    same = torch.ones(whole.shape[:2], dtype=torch.bool, device=whole.device)[1:]
    for array in fixed:
        same &= (array[1:] == array[0]).all(dim=-1)
    return whole[0], whole[1:] - whole[0], same
