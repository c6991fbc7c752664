"""Contents of a problem's report: `RowMean`, a figure beside the rows that it leaves out, and `Picture`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

import numpy as np

from tasks.errors import ProblemError

TEST_LOSS = "test loss"  # the mean objective of the test data
LOW = re.compile("loss|error|mis(fit|match)|\\b[nr]*m[as]e\\b")  # of names of figures that are to be low


@dataclass(frozen=True)
class RowMean:
    """A figure of `evaluate`: the mean over the rows that came back, and the count of the other rows.

    One failed row makes the mean of all NaN; a mean over the others alone hides it, and flatters a network
    whose rows fail where they would be bad. So a result has both, and the report where rows have failed.
    A mean of few rows is uncertain, so a result has its standard error, too.

        return {"test error": tasks.RowMean((found - truth).abs().mean(dim=1))}

    Args:
        rows: A number for each row, `(rows,)`; not finite where the row failed.

    Raises:
        ProblemError: The rows are no row of numbers, or there is none.
    """

    rows: Any

    def __post_init__(self) -> None:
        """Refuse what has no rows."""
        shape = np.shape(self.rows)
        if len(shape) != 1 or shape[0] == 0:
            raise ProblemError(f"RowMean: expected a number for each row, (rows,), got shape {shape}.")

    @property
    def value(self) -> float:
        """The mean over rows that came back; NaN where none did."""
        import torch

        rows = torch.as_tensor(self.rows).detach().double()
        return float(rows[rows.isfinite()].mean())

    @property
    def failed(self) -> int:
        """The number of rows that did not come back."""
        import torch

        return int((~torch.as_tensor(self.rows).isfinite()).sum())

    @property
    def by_row(self) -> tuple[float | None, ...]:
        """The number of each row; None where it failed."""
        import torch

        rows = torch.as_tensor(self.rows).detach().double().tolist()
        return tuple(value if math.isfinite(value) else None for value in rows)


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure for the report, with the sentence below it."""

    caption: str
    figure: Any


def standard_error(values: Sequence[float | None]) -> float | None:
    """The standard error of a mean over rows, of those that came back; None of fewer than two."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None


def without_failed(figures: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """Figures with the value of each `RowMean` in its place, and by name how many rows that leaves out."""
    means = {name: value for name, value in figures.items() if isinstance(value, RowMean)}
    values = {name: mean.value for name, mean in means.items()}
    return {**figures, **values}, {name: mean.failed for name, mean in means.items()}
