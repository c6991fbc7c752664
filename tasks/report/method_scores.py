"""A method's first figure over the seeds of a run, as it is shown and as methods are ranked by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from tasks.folder.result import NOT_APPLICABLE, REJECTED, Result, Row


@dataclass(frozen=True)
class Score:
    """A method's first figure over the seeds.

    Attributes:
        rows: A row of the result for each seed.
    """

    rows: Sequence[Row]

    @property
    def method(self) -> str:
        """Its name."""
        return self.rows[0].method

    @property
    def role(self) -> str:
        """The shared method whose part it has in the report's first sentences; its own name for no other."""
        return self.rows[0].role or self.method

    @property
    def refused(self) -> str:
        """The reason why the method is not applicable to this problem; "" where it is."""
        return next((str(row.extra[NOT_APPLICABLE]) for row in self.rows if NOT_APPLICABLE in row.extra), "")

    @property
    def metric(self) -> str:
        """The name of the figure."""
        return self.rows[0].metric

    @property
    def values(self) -> dict[int, float]:
        """The figure by seed; NaN where there is no finite figure."""
        return {row.seed: math.nan if row.value is None else row.value for row in self.rows}

    @property
    def mean(self) -> float:
        """The mean over the seeds; NaN where one has no finite figure: a mean over the rest would flatter."""
        return fmean(self.values.values())

    @property
    def loss(self) -> float:
        """The mean, with a sign that makes lower better."""
        return -self.mean if self.rows[0].higher_is_better else self.mean

    @property
    def box_rows(self) -> float:
        """Box rows that training took, the mean over seeds."""
        return fmean(row.rows for row in self.rows)

    @property
    def left_out(self) -> int:
        """Rows that failed and are not in the figure, in all seeds together."""
        return self.failed(self.metric)

    def failed(self, name: str) -> int:
        """Rows of a figure, of validation or of the test that failed, in all seeds together."""
        return sum(row.failed.get(name, 0) for row in self.rows)

    def __str__(self) -> str:
        """Show it: "0.0031 ± 0.0015 m/s", or that the method is not applicable."""
        if self.refused:
            return NOT_APPLICABLE
        unit = self.rows[0].unit
        return with_spread(list(self.values.values())) + (f" {unit}" if unit else "")


def scores(result: Result) -> list[Score]:
    """Return the score of each method, in the order of the table."""
    methods = dict.fromkeys(row.method for row in result.table)
    return [Score([row for row in result.table if row.method == method]) for method in methods]


def with_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, to two digits of the latter; one value has four digits."""
    if not all(map(math.isfinite, values)):
        return "not finite"
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:.4g}"
    spread = stdev(values)
    largest = max(abs(mean), spread)
    if not 1e-4 <= largest < 1e6 or spread < 1e-5 * largest:
        return f"{mean:.4g} ± {spread:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


def untouched(result: Result) -> list[str]:
    """A sentence, with the reason, for each method whose start weights were the best in validation."""
    lines = []
    for score in scores(result):
        rows = [row for row in score.rows if row.extra.get("steps") and row.extra.get("chosen step") == 0]
        if not rows:
            continue
        seeds = "" if len(score.rows) == 1 else f" (seed {', '.join(str(row.seed) for row in rows)})"
        rejected = sum(int(row.extra.get(REJECTED) or 0) for row in rows)
        why = "no validation after the first was better"
        if rejected:
            why += f", and in {rejected:,} of them too many rows failed to choose weights by"
        lines.append(f"{score.method} has the weights that it started from{seeds}: {why}.")
    return lines
