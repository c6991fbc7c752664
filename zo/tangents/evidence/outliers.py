"""`Outliers`: an answer far off from all others, alone, from which nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blackbox.notices import Notice
from zo.errors import TangentWarning
from zo.tangents.models.row_window import Moments
from zo.tangents.record.pairs import CallPairs

# decision 146:
FAR = 10.0  # standard deviations of all answers so far
FEWEST = 20  # rows, before which nothing is known of what is usual
ALONE = 50  # steps without one before: what comes again is what the box is like


@dataclass(frozen=True)
class Outlying:
    """The rows of one step that nothing is learned from.

    Attributes:
        rows: `(batch rows,)` bool, True where a call has such a row.
        calls: the numbers of the calls that have some, from 1 on.
        few: how many rows of calls they are.
        total: how many rows of calls there are.
        farthest: how far off the farthest of them is, in standard deviations of the answers so far.
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
            f"{where}: expected answers like those so far, got {self.few} of {self.total} rows of calls that "
            f"are up to {self.farthest:.3g} standard deviations off, from them and from what was predicted. "
            "They count in this step's loss and gradient. But nothing is learned from them, and they are not "
            f"replayed, unless such rows come again within {ALONE} steps: if the box is right there, do "
            "nothing. If it is wrong, have it answer NaN in such rows: then the gradient is that of the "
            "others. Further ones are counted (outliers), without another warning.",
            TangentWarning,
        )


class Outliers:
    """The answers of one box that are too far from all others, and alone, to be learned from.

    A row is far where its outputs are ten standard deviations of all answers so far, in the root mean square
    over the outputs, from their mean and from what was predicted. One such row may spoil a fit for many
    steps, and solvers do return nonsense without an error. So it is left out, unless there was a far row in
    the fifty steps before, or most rows of the batch are far: then the box is like that, or is asked
    elsewhere now. Nothing is far while fewer than twenty rows are known.

    Args:
        wanted: whether any are looked for.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        self._usual, self._rows = Moments(), 0  # of the outputs that were learned from
        self._since = ALONE  # steps without a far row

    @torch.no_grad()
    def without(
        self, calls: Sequence[CallPairs], values: Sequence[Tensor | None], rows: int
    ) -> tuple[list[CallPairs], float]:
        """The calls of a step, in which rows that are far and alone count as failed.

        Args:
            calls: the calls of the box in the step, one or more.
            values: the predicted outputs of each call, `(rows, size_out)`; None without a prediction.
            rows: the number of rows of the batch.

        Returns:
            The calls, and the distance of the farthest row that was left out; 0 where none was.
        """
        sizes = self._far(calls, values)
        if sizes is None:
            self._since = min(self._since + 1, ALONE)
            return list(calls), 0.0
        alone, self._since = self._since >= ALONE, 0
        masks = [size > FAR for size in sizes]
        if not alone or (rows > 1 and 2 * int(_of_batch(masks, rows).sum()) > rows):
            return list(calls), 0.0
        both = zip(calls, masks, strict=True)
        inliers = [replace(pairs, alive=pairs.alive & ~mask) for pairs, mask in both]
        return inliers, max(float(size.max()) for size in sizes)

    @torch.no_grad()
    def take(self, calls: Sequence[CallPairs]) -> None:
        """Take in what is learned from, as `without` gave it."""
        if not self.wanted:
            return
        y = torch.cat([pairs.y[pairs.alive.nonzero(as_tuple=True)] for pairs in calls])
        if len(y):
            if self._rows and self._usual.mean().device != y.device:  # as read from a file
                self._usual.load_state_dict(self._usual.state_dict(), y.device)
            self._usual.add(y)
            self._rows += len(y)

    def state_dict(self) -> dict[str, Any]:
        """Save the usual answers, and the time of the last far row."""
        return {"usual": self._usual.state_dict(), "rows": self._rows, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        sums = state["usual"]["sums"]
        device = sums[0].device if sums else torch.device("cpu")
        self._usual.load_state_dict(state["usual"], device)
        self._rows, self._since = state["rows"], state["since"]

    def _far(self, calls: Sequence[CallPairs], values: Sequence[Tensor | None]) -> list[Tensor] | None:
        """Return how far the rows of each call are, `(rows,)`, 0 where not known; None where none is far."""
        if not self.wanted or self._rows < FEWEST:
            return None
        predictions = [value for value in values if value is not None]
        if len(predictions) < len(calls):
            return None
        y, alive = (torch.cat([getattr(pairs, name) for pairs in calls]) for name in ("y", "alive"))
        y, varies = y.double(), (~self._usual.same()).to(y.device)
        short = torch.where(varies, 1 / self._usual.scale().to(y), 0.0)
        off = torch.where(alive, _size((y - self._usual.mean().to(y)) * short, varies), 0.0)
        if not bool((off > FAR).any()):  # as in nearly all steps: nothing else is looked at
            return None
        predicted = torch.cat(predictions).double()
        off = torch.minimum(off, _size((y - predicted) * short, varies))
        off = torch.where(off.isfinite(), off, 0.0)  # a prediction may not be
        counts = [len(pairs.z) for pairs in calls]
        return list(off.split(counts)) if bool((off > FAR).any()) else None


def outlying(
    calls: Sequence[CallPairs], inliers: Sequence[CallPairs], farthest: float, rows: int
) -> Outlying | None:
    """The rows of a step that were left out; None where there are none.

    Args:
        calls: the calls of all boxes.
        inliers: the same calls without the outliers.
        farthest: the distance of the farthest outlier; 0 where there are none.
        rows: the number of rows of the batch.
    """
    if not farthest:
        return None
    masks = [pairs.alive & ~inlying.alive for pairs, inlying in zip(calls, inliers, strict=True)]
    counts = [int(mask.sum()) for mask in masks]
    numbers = tuple(number for number, count in enumerate(counts, start=1) if count)
    return Outlying(_of_batch(masks, rows), numbers, sum(counts), sum(map(len, masks)), farthest)


def _of_batch(masks: Sequence[Tensor], rows: int) -> Tensor:
    """Say which rows of a batch have a marked row of a call; other calls' rows belong to no known one."""
    of_batch = torch.zeros(rows, dtype=torch.bool, device=masks[0].device)
    for mask in masks:
        if len(mask) % rows == 0:
            of_batch |= mask.view(rows, -1).any(dim=1)
    return of_batch


def _size(off: Tensor, varies: Tensor) -> Tensor:
    """The root mean square of each row over the numbers that vary; large ones have no square."""
    most = off.abs().amax(dim=1).clamp(min=1.0)
    squares = (off / most[:, None]).square().sum(dim=1)
    return most * (squares / varies.sum().clamp(min=1)).sqrt()
