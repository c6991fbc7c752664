"""A method's first figure over the seeds of a run: as it is shown and ranked by, and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from blackbox.words import counted
from tasks.folder.result import NOT_APPLICABLE, REJECTED, UNDER_WAY, Result, Row
from tasks.problem.report_contents import standard_error

# standard errors, beyond which two methods' difference on the same rows, or with the same seeds, is more than
# chance; of fewer than nine Student's 97.5 % quantiles, from two on
APART, APART_OF_FEW = 2.0, (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36)
NOT_TESTED = "not tested yet"
FEW = 5  # standard errors, that a difference has to have where the rows of both are not known one by one


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
    def under_way(self) -> bool:
        """True if its training is under way, so that it was not tested."""
        return any(UNDER_WAY in row.extra for row in self.rows)

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
    def by_row(self) -> np.ndarray:
        """The figure of each test row, the mean over seeds, NaN where one failed; empty if not known."""
        every = [row.by_row for row in self.rows]
        if len({len(rows) for rows in every}) > 1:
            return np.empty(0)
        return np.mean(np.array(every, dtype=float), axis=0)

    @property
    def standard_error(self) -> float | None:
        """The standard error over test rows, which all seeds share; None where it is not known."""
        return standard_error(self.by_row.tolist())

    @property
    def on(self) -> str:
        """The rows that it was measured on: "8 rows", "7 to 8 rows" if some failed; "" if not known."""
        counts = {row.test_rows for row in self.rows}
        row_counts = sorted(count for count in counts if count)
        if len(row_counts) < len(counts):
            return ""
        return ("" if len(row_counts) == 1 else f"{row_counts[0]:,} to ") + counted(row_counts[-1], "row")

    @property
    def plain(self) -> str:
        """The figure with its spread over seeds, as without test rows; to four digits with one seed."""
        return with_spread(list(self.values.values()))

    @property
    def figure(self) -> str:
        """The figure ± its spread over seeds; with one seed ± its standard error over test rows, if known."""
        error = self.standard_error
        if len(self.rows) > 1 or error is None or not math.isfinite(self.mean):
            return self.plain
        return with_error(self.mean, error)

    @property
    def cell(self) -> str:
        """The figure and on how many rows: "0.0031 ± 0.0015 (8 rows)"."""
        if self.refused or self.under_way:
            return str(self)
        return self.figure + (f" ({self.on})" if self.on and math.isfinite(self.mean) else "")

    @property
    def left_out(self) -> int:
        """Rows that failed and are not in the figure, in all seeds together."""
        return self.failed(self.metric)

    def failed(self, name: str) -> int:
        """Rows of a figure, of validation or of the test that failed, in all seeds together."""
        return sum(row.failed.get(name, 0) for row in self.rows)

    def __str__(self) -> str:
        """Show it: "0.0031 ± 0.0015 m/s", or that the method is not applicable, or not tested yet."""
        if self.refused:
            return NOT_APPLICABLE
        if self.under_way:
            return NOT_TESTED
        unit = self.rows[0].unit
        return self.figure + (f" {unit}" if unit else "")


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
    return with_error(mean, stdev(values))


def with_error(mean: float, spread: float) -> str:
    """Mean ± its spread or error, to two digits of the latter."""
    largest = max(abs(mean), spread)
    if not 1e-4 <= largest < 1e6 or spread < 1e-5 * largest:
        finer = math.floor(math.log10(abs(mean))) - math.floor(math.log10(spread)) if mean and spread else 0
        return f"{mean:.{min(8, max(4, finer + 2))}g} ± {spread:.2g}"
    digits = 1 - math.floor(math.log10(spread))
    decimals = max(0, digits)
    return f"{round(mean, digits):.{decimals}f} ± {round(spread, digits):.{decimals}f}"


def told_apart(one: Score, other: Score) -> bool:
    """Say whether the test rows tell two methods' figures apart; True where nothing is known of the rows.

    On the same rows the differences, row by row, are what counts: a hard row is hard for both.
    """
    rows, other_rows = one.by_row, other.by_row
    if len(rows) and len(rows) == len(other_rows):
        differences = rows - other_rows
        differences = differences[np.isfinite(differences)]
        error = standard_error(differences.tolist())
        mean = float(differences.mean()) if len(differences) else 0.0
        if mean * (one.mean - other.mean) < 0:  # rows that failed in one of them alone decide the figures
            return False
        return error is not None and abs(mean) > apart(len(differences)) * error
    errors = [error for error in (one.standard_error, other.standard_error) if error is not None]
    return not errors or abs(one.mean - other.mean) > FEW * math.hypot(*errors)


def apart(count: int) -> float:
    """Return how many standard errors of so many differences are more than chance."""
    return dict(enumerate(APART_OF_FEW, 2)).get(count, APART)


def meaning(result: Result) -> str:
    """Say what ± is beside the figures of a table; "" where there is none."""
    several = len(result.seeds) > 1 and any(math.isfinite(score.mean) for score in scores(result))
    seeds = f"± is the standard deviation of {len(result.seeds)} seeds." if several else ""
    return " ".join(filter(None, (seeds, meaning_of_error(result))))


def meaning_of_error(result: Result) -> str:
    """Say of what the standard error beside the figures of a table is; "" where there is none."""
    if not any(math.isfinite(score.mean) and score.standard_error is not None for score in scores(result)):
        return ""
    if len(result.seeds) > 1:
        return "The standard error is that over test rows, which all seeds share."
    return "± is the standard error over test rows."


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
