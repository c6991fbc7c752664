"""`Outliers`: answers too far from what was predicted to be learned from, as long as they are few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blackbox.notices import Notice
from zo.errors import TangentWarning
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.record.units import RunningScale, usual_sizes

# decision 146:
FAR = 10.0  # times what the outputs usually vary by
FEW = 0.1  # of all rows: more of them are what the box is like
AGE = 50  # steps: older ones have faded from these shares


@dataclass(frozen=True)
class Outlying:
    """The rows of one step that nothing is learned from.

    Attributes:
        rows: `(batch rows,)` bool, True where a call has such a row.
        calls: the numbers of the calls that have some, from 1 on.
        few: how many rows of calls they are.
        total: how many rows of calls there are.
        farthest: how far off the farthest of them is, in what the outputs usually vary by.
    """

    rows: Tensor
    calls: tuple[int, ...]
    few: int
    total: int
    farthest: float

    def notice(self, where: str) -> Notice:
        """The warning of them.

        Args:
            where: the step or call, in words.
        """
        return Notice(
            "outliers",
            f"{where}: expected answers near those that were predicted, got {self.few} of {self.total} rows "
            f"of calls that are off by up to {self.farthest:.3g} times what outputs usually vary by. Nothing "
            "is learned from these, and they are not replayed; in this step's loss and gradient they count "
            "as they are. If the box is wrong there, have it answer NaN in such rows: then the gradient is "
            "that of the others. If it is right, you need do nothing: once they are more than a tenth of the "
            "rows they are learned from. Further ones are counted (outliers), without another warning.",
            TangentWarning,
        )


class Outliers:
    """Which answers of one box are too far from what was predicted to be learned from.

    A row is far where its outputs are off from those predicted by ten times what they usually vary by
    between the rows and calls of a step, in the root mean square over the outputs that vary. One such row is
    enough to spoil a fit for many steps, and solvers do return nonsense without an error. So they are left
    out, unless they are more than a tenth of the last rows: then the box is like that, or is asked elsewhere
    now, and they are learned from as all others. In steps of a single row and call nothing is far.

    Attributes:
        farthest: of the last step, how far off the farthest of those left out is; 0 where none is.
    """

    def __init__(self) -> None:
        self.farthest = 0.0
        self._usual = RunningScale()
        self._rows = self._far = 0.0  # of all steps, the last ones counting most

    @torch.no_grad()
    def without(self, calls: Sequence[CallPairs], values: Sequence[Tensor | None]) -> list[CallPairs]:
        """The calls of a step, in which rows that are far count as failed, as long as they are few.

        Args:
            calls: the calls of the box in the step, one or more.
            values: the outputs of each as they were predicted, `(rows, size_out)`; None where none were.
        """
        kept = self._few_left_out(calls, [self._off(*both) for both in zip(calls, values, strict=True)])
        y = torch.cat([pairs.y[pairs.alive.nonzero(as_tuple=True)] for pairs in kept])
        self._usual.take(usual_sizes(y[:0], y, varied=True))
        return kept

    def state_dict(self) -> dict[str, Any]:
        """What outputs vary by, how many rows there were, and how many of them were far."""
        return {"usual": self._usual.state_dict(), "rows": self._rows, "far": self._far}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._usual.load_state_dict(state["usual"])
        self._rows, self._far = state["rows"], state["far"]

    def _few_left_out(self, calls: Sequence[CallPairs], sizes: Sequence[Tensor]) -> list[CallPairs]:
        every = torch.cat(list(sizes))
        far, fading = int((every > FAR).sum()), 1 - 1 / AGE
        self._rows, self._far = fading * self._rows + len(every), fading * self._far + far
        self.farthest = 0.0
        if not far or self._far > FEW * self._rows:
            return list(calls)
        self.farthest = float(every.max())
        return [_left_out(pairs, size > FAR) for pairs, size in zip(calls, sizes, strict=True)]

    def _off(self, pairs: CallPairs, values: Tensor | None) -> Tensor:
        """How far each row is from what was predicted, `(rows,)` float64; 0 where that is not known."""
        if values is None or not len(self._usual.scale):
            return pairs.y.new_zeros(len(pairs.z), dtype=torch.float64)
        short = reciprocal(self._usual.scale.to(pairs.y.device))
        missed = (pairs.y.double() - values.double()) * short
        most = missed.abs().amax(dim=1, keepdim=True)  # whose square need not be a number
        squares = (missed / most.clamp(min=1.0)).square().sum(dim=1)
        off = most[:, 0].clamp(min=1.0) * (squares / (short > 0).sum().clamp(min=1)).sqrt()
        return torch.where(pairs.alive & off.isfinite(), off, 0.0)  # a prediction may not be finite


def outlying(
    given: Sequence[CallPairs], kept: Sequence[CallPairs], farthest: float, rows: int
) -> Outlying | None:
    """The rows of a step that were left out; None where there are none.

    Args:
        given: the calls of all boxes.
        kept: the same without these.
        farthest: how far off the farthest of them is; 0 where there are none.
        rows: of the batch.
    """
    if not farthest:
        return None
    masks = [before.alive & ~after.alive for before, after in zip(given, kept, strict=True)]
    of_batch = torch.zeros(rows, dtype=torch.bool, device=masks[0].device)
    for mask in masks:
        if len(mask) % rows == 0:  # else nothing is known of whose they are
            of_batch |= mask.view(rows, -1).any(dim=1)
    counts = [int(mask.sum()) for mask in masks]
    numbers = tuple(number for number, count in enumerate(counts, start=1) if count)
    return Outlying(of_batch, numbers, sum(counts), sum(map(len, masks)), farthest)


def _left_out(pairs: CallPairs, far: Tensor) -> CallPairs:
    return replace(pairs, alive=pairs.alive & ~far, valid=pairs.valid & ~far)
