"""Whether differences at a box's inputs are slopes: some queries asked again, at steps of other lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox import BudgetError, RowFailedError
from zo.box_gradient.row_queries import Outputs, RowQueries

DOUBTFUL = 0.3  # of the slopes: what check_black_box warns of too
SLIGHT = 0.05  # what longer or shorter steps may be off by, to take the place of the user's mu
ALIKE = 0.9  # mean over root mean square: all slopes are off alike, by a bend within less than mu
LEAST, MOST, SHARE = 2, 8, 100  # rows of a check: at least, at most, and one in so many of the queries

Change = Callable[[Tensor, Outputs], tuple[Tensor, Tensor, Tensor]]
"""Rows and their outputs to what they change of the scalar, and whether they are valid, and changed."""


def is_checked(call: int) -> bool:
    """Whether some queries of a call are asked again: of calls 0, 1, 10, 100, 1,000, ..."""
    return str(call).rstrip("0") in ("", "1")


@dataclass(frozen=True)
class Doubt:
    """What is doubtful about the differences of a call.

    Attributes:
        error: of the slopes, relative; an estimate.
        what: "noise" if the base gives other answers, "bend" if longer steps give other slopes, more than
            shorter ones; else "rough": rounding, steps, jumps.
        size: of the scalars' changes at mu, and of the base's where it is noise.
    """

    error: float
    what: str
    size: float


def look_again(
    queries: RowQueries, differences: Tensor, valid: Tensor, change: Change
) -> tuple[Doubt | None, int]:
    """Compare some slopes with those of half their steps; in doubt also of twice, and the base with itself.

    The pairs of query and row are those of which equal parts of the sum of squares come: a typical one where
    all are alike, the one that changed most where it is nearly all.

    Args:
        queries: of one call.
        differences: `(queries, rows)` float64, the scalar of each minus the base's.
        valid: `(queries, rows)` bool.
        change: what rows that are asked again change of the scalar.

    Returns:
        What is doubtful, or None; and how many rows were asked.
    """
    again = _Again(queries, differences, valid, change)
    if not len(again.row):
        return None, 0
    try:
        off = again.off(0.5)
        shorter = _root_mean_square(off)
        if shorter <= DOUBTFUL / 2:
            return None, again.asked
        longer, noise = _root_mean_square(again.off(2.0)), again.noise()
    except (BudgetError, RowFailedError):  # the gradient is there, and that is what the rows are for
        return None, again.asked
    if noise > DOUBTFUL:
        error, what = noise, "noise"
    elif longer > shorter:  # a curvature makes slopes wrong by two differences, third derivatives by 4/3
        error, what = shorter * (4 / 3 if queries.central else 2), "bend"
    else:
        what, error = "rough", shorter
        if abs(float(off.mean())) < ALIKE * shorter:  # of either sign: rounding, which half of a step doubles
            error /= math.sqrt(5 if queries.central else 3)
    return (Doubt(error, what, again.size) if error > DOUBTFUL else None), again.asked


def gives_slopes(queries: RowQueries, differences: Tensor, valid: Tensor, change: Change) -> tuple[bool, int]:
    """Whether some slope is not zero, and half of the step gives nearly the same; and the rows asked.

    Raises:
        BudgetError, RowFailedError: of the rows that are asked again.
    """
    again = _Again(queries, differences, valid, change)
    return len(again.row) > 0 and _root_mean_square(again.off(0.5)) <= SLIGHT, again.asked


class _Again:
    """The pairs of query and row that are asked again, and what they give."""

    def __init__(self, queries: RowQueries, differences: Tensor, valid: Tensor, change: Change) -> None:
        self.queries, self.change, self.asked = queries, change, 0
        self.half = len(differences) // 2
        if queries.central:
            differences = (differences[: self.half] - differences[self.half :]) / 2
            valid = valid[: self.half] & valid[self.half :]
        changes = torch.where(valid, differences, 0.0).nan_to_num(0.0, 0.0, 0.0).flatten()
        self.size = float(changes.square().mean().sqrt()) if changes.numel() else 0.0
        count = min(MOST, max(LEAST, valid.numel() // SHARE // (2 if queries.central else 1)))
        chosen = _of_equal_parts(changes, count)
        rows = max(1, differences.shape[1])
        self.query, self.row, self.changes = chosen // rows, chosen % rows, changes[chosen]

    def off(self, times: float) -> Tensor:
        """How far slopes of steps of another length are off, relative to these, `(n,)`; of the valid ones."""
        taken, central = self.queries.steps[self.query, self.row], self.queries.central
        query = torch.cat([self.query, self.query + self.half]) if central else self.query
        found, step, valid = self._scalars(query, times)
        if central:
            taken = (taken - self.queries.steps[self.query + self.half, self.row]) / 2
            (found, back), (step, behind), (valid, too) = (part.chunk(2) for part in (found, step, valid))
            found, step, valid = found - back, step - behind, valid & too
        slopes, valid = self.changes / taken, valid & (step != 0)
        return ((found / step - slopes) / slopes)[valid]

    def noise(self) -> float:
        """How far the base is from itself, relative to the changes."""
        found, _, valid = self._scalars(self.query, 0.0)
        return _root_mean_square((found / self.changes)[valid]) / (2 if self.queries.central else 1)

    def _scalars(self, query: Tensor, times: float) -> tuple[Tensor, Tensor, Tensor]:
        scalars, steps, valid = [], [], []
        for row, step, results in self.queries.again(
            query, self.row.repeat(len(query) // len(self.row)), times
        ):
            self.asked += len(row)
            scalar, finite, _ = self.change(row, results)
            scalars.append(scalar)
            steps.append(step)
            valid.append(finite)
        return torch.cat(scalars), torch.cat(steps), torch.cat(valid)


def _of_equal_parts(changes: Tensor, count: int) -> Tensor:
    """Which changes are in the middle of `count` equal parts of their sum of squares, larger ones first."""
    sizes, order = changes.abs().sort(descending=True, stable=True)
    if not len(sizes) or not sizes[0] > 0:
        return order[:0]
    sums = (sizes / sizes[0]).square().cumsum(dim=0)
    middles = (torch.arange(count, device=sums.device) + 0.5) / count * sums[-1]
    return order[torch.searchsorted(sums, middles).unique()]


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if len(values) else 0.0
