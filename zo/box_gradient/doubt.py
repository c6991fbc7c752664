"""A check that differences at a box's inputs are slopes: some queries asked again, at other steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from blackbox.errors import BudgetError, RowFailedError
from zo.box_gradient.row_queries import Outputs, RowQueries
from zo.slopes import Doubt, doubt_of

DOUBTFUL = 0.3  # of the slopes: what check_black_box warns of too; decision 40
SLIGHT = 0.05  # what longer or shorter steps may be off by, to take the place of the user's mu; decision 41
NEAR = 0.25  # of what slopes back differ by, over half of the step: no more where a kink is at the base
LEAST, MOST, SHARE = 2, 8, 100  # rows of a check: at least, at most, and one in so many of the queries

ChangeOfRows = Callable[[Tensor, Outputs], tuple[Tensor, Tensor, Tensor]]
"""Rows and their outputs to what they change of the scalar, and whether they are valid, and changed."""


def is_checked(call: int) -> bool:
    """Say whether some queries of a call are asked again: those of calls 0, 1, 10, 100, 1,000, ..."""
    return str(call).rstrip("0") in ("", "1")


def most_asked(pairs: int, *, central: bool) -> int:
    """Return the most rows that `look_again` asks, for so many pairs of query and row of a call."""
    first, again = min(pairs, MOST, max(LEAST, pairs // SHARE)), min(pairs, MOST)
    if central:
        return 2 * (first + 2 * again) + again  # over half of mu; in doubt also twice of it, and the base
    return 2 * first + 5 * again  # and back, over mu, and over half of it


def look_again(
    queries: RowQueries, differences: Tensor, valid: Tensor, change: ChangeOfRows
) -> tuple[Doubt | None, int]:
    """Compare a few slopes with slopes over half their steps; in doubt more, also over twice, and the base.

    Forward slopes are compared with slopes back, too. A kink right at the base is reported where the slopes
    back differ, but are the same over half of the step. That excludes a kink further back, and a jump there,
    which the forward slopes do not show.

    The pairs of query and row are chosen so that equal parts of the sum of squares come from each: a typical
    pair where all are similar, and the largest one where it is nearly all.

    Args:
        queries: the queries of one call.
        differences: `(queries, rows)` float64, the scalar of each minus the base's.
        valid: `(queries, rows)` bool, False where a query failed.
        change: gives the change of the scalar by rows that are asked again.

    Returns:
        The doubt, or None; and how many rows were asked.
    """
    again = _Again(queries, differences, valid, change)
    if not len(again.row):
        return None, 0
    try:
        if doubt_of(again.full, again.slopes(0.5), back=again.back()).off <= DOUBTFUL / 2:
            return None, again.asked
        again.choose(MOST)  # of two, both may cross a step of rounding by chance, as a jump is crossed
        half, back = again.slopes(0.5), again.back()
        if back is not None and doubt_of(again.full, half, back=back).cause == "kink":
            back = again.at_the_base(back)
        doubt = doubt_of(again.full, half, again.slopes(2.0), noise=again.noise(), back=back)
    except (BudgetError, RowFailedError):  # the gradient is there, and that is what the rows are for
        return None, again.asked
    return (doubt if doubt.error > DOUBTFUL else None), again.asked


def gives_slopes(
    queries: RowQueries, differences: Tensor, valid: Tensor, change: ChangeOfRows
) -> tuple[bool, int]:
    """Say whether some slope is not zero and half of the step gives nearly the same; count the rows asked.

    Raises:
        BudgetError, RowFailedError: a row that was asked again failed, or the budget is spent.
    """
    again = _Again(queries, differences, valid, change)
    return len(again.row) > 0 and doubt_of(again.full, again.slopes(0.5)).half <= SLIGHT, again.asked


class _Again:
    """The pairs of query and row that are asked again, and what they give."""

    def __init__(self, queries: RowQueries, differences: Tensor, valid: Tensor, change: ChangeOfRows) -> None:
        self.queries, self.change, self.asked = queries, change, 0
        self.half = len(differences) // 2
        if queries.central:
            differences = (differences[: self.half] - differences[self.half :]) / 2
            valid = valid[: self.half] & valid[self.half :]
        self.all = torch.where(valid, differences, 0.0).nan_to_num(0.0, 0.0, 0.0)
        self.choose(min(MOST, max(LEAST, valid.numel() // SHARE)))

    def choose(self, count: int) -> None:
        """Choose at most so many pairs."""
        places, rows = _of_equal_parts(self.all.flatten(), count), max(1, self.all.shape[1])
        self.query, self.row, self.changes = places // rows, places % rows, self.all.flatten()[places]
        self.full = torch.ones_like(
            self.changes
        )  # each stands for an equal part, so that all have the same weight

    def slopes(self, times: float) -> Tensor:
        """Slopes of steps of another length, relative to these, `(n,)`; NaN where a row failed."""
        lengths, central = self.queries.steps[self.query, self.row], self.queries.central
        query = torch.cat([self.query, self.query + self.half]) if central else self.query
        scalars, step, valid = self._scalars(query, times)
        if central:
            lengths = (lengths - self.queries.steps[self.query + self.half, self.row]) / 2
            (scalars, back), (step, behind), (valid, too) = (part.chunk(2) for part in (scalars, step, valid))
            scalars, step, valid = scalars - back, step - behind, valid & too
        return torch.where(valid & (step != 0), (scalars / step) / (self.changes / lengths), torch.nan)

    def back(self) -> Tensor | None:
        """Slopes of forward steps the other way, `(n,)`; NaN where a row failed, None of central steps."""
        if self.queries.central:
            return None
        try:
            return self.slopes(-1.0)
        except RowFailedError:  # the box may end there: a root at zero
            return torch.full_like(self.full, torch.nan)

    def at_the_base(self, back: Tensor) -> Tensor:
        """Slopes back; its own where half of the step back gives others, as beside a kink or a jump."""
        differ = (self.slopes(-0.5) - back).abs() / (self.full - back).abs()
        return torch.where(differ > NEAR, self.full, back)

    def noise(self) -> float:
        """Measure the base's difference from itself, relative to the changes."""
        scalars, _, valid = self._scalars(self.query, 0.0)
        deviations = (scalars / self.changes)[valid]
        if not len(deviations):
            return 0.0
        return float(deviations.square().mean().sqrt()) / (2 if self.queries.central else 1)

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
    """Pick the changes in the middle of `count` equal parts of their sum of squares, larger ones first."""
    sizes, order = changes.abs().sort(descending=True, stable=True)
    if not len(sizes) or not sizes[0] > 0:
        return order[:0]
    sums = (sizes / sizes[0]).square().cumsum(dim=0)
    middles = (torch.arange(count, device=sums.device) + 0.5) / count * sums[-1]
    return order[torch.searchsorted(sums, middles).unique()]
