"""`Figure`, a value of ours for each seed; `Claim`, a figure that a page states beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.catalogue import read


@dataclass(frozen=True)
class Figure:
    """Ours: a value for each seed; none where it was not run."""

    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where it was not run."""
        return fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Claim:
    """A figure that a page states.

    Attributes:
        page: From the repository's root.
        what: In words.
        stated: As it is read there.
        ours: From the committed results.
        source: The file in `benchmarks/results`; a sentence where there is none.
    """

    page: str
    what: str
    stated: str
    ours: Figure
    source: str

    @property
    def difference(self) -> str:
        """In a sentence."""
        if not self.ours.values:
            return "not run"
        number = float(self.stated.replace(",", ""))
        decimals = len(self.stated.partition(".")[2])
        off = self.ours.mean - number
        if abs(off) <= 0.5 * 10.0**-decimals + 1e-9:
            return "The same, rounded as there."
        return f"Ours is {abs(off):.2g} {'above' if off > 0 else 'below'} it."


def line(name: str, label: object, method: str) -> dict[str, Any] | None:
    """A line of a reproduction's table; None where it was not run."""
    lines = read(f"{name}/result.json").get("table", ())
    return next((entry for entry in lines if (entry["label"], entry["method"]) == (label, method)), None)


def figure(file: str, table: str, column: str, /, unit: float = 1.0, **where: object) -> Figure:
    """The values of a column in the rows of a file's table, such as a row for each seed.

    Args:
        file: In `benchmarks/results`.
        table: Its name in the file, or several with "/" between; a table of one row may be the row itself.
        column: Of the rows, or of what they have in "extra"; with "/" between names a value further in.
        unit: In which the values are.
        **where: What other columns hold in these rows.
    """
    entries: Any = read(file)
    for name in table.split("/"):
        entries = entries.get(name, {})
    values = []
    for row in entries if isinstance(entries, list) else [entries] if entries else []:
        if all(row[name] == wanted for name, wanted in where.items()):
            value: Any = {**row.get("extra", {}), row.get("metric"): row.get("value"), **row}
            for name in column.split("/") if column not in value else (column,):
                value = value[name]
            values.append(value)
    return Figure() if None in values else Figure(tuple(value / unit for value in values))


def ratio(one: Figure, other: Figure) -> Figure:
    """Of the means."""
    return Figure((one.mean / other.mean,)) if one.values and other.values else Figure()


def mean_of(file: str, name: str, /, unit: float = 1.0, **where: object) -> tuple[Figure, str]:
    """A column of a file's table, see `figure`, and the file."""
    return figure(file, "table", name, unit, **where), file
