"""How far two answers to the same rows are apart, and how far rounding may take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.probe import Arrays, Probe

ROUNDING = 200  # units of the outputs' rounding that another order of summation may make
SERIOUS = 1e-5  # of an output's size: no rounding of double precision
SERIOUS_UNITS = 8000  # units of the outputs' rounding, 1e-3 in float32


@dataclass(frozen=True)
class Difference:
    """The largest difference of two answers.

    Attributes:
        relative: over the output's largest number; infinite where NaN stands beside a number.
        excess: how many times what equal calls differ by; infinite where equal calls are equal.
        output: its name.
        row: its row.
        precision: rounding unit of the output.
    """

    relative: float
    excess: float
    output: str
    row: int
    precision: float

    @property
    def verdict(self) -> Verdict:
        """Ok to rounding, or to three times the box's own randomness."""
        if self.relative <= ROUNDING * self.precision or self.excess <= 3:
            return Verdict.OK
        serious = max(SERIOUS, SERIOUS_UNITS * self.precision)
        return Verdict.FAULT if self.relative > serious else Verdict.WARNING

    def words(self) -> str:
        """The size of the difference and where it is."""
        if self.relative == 0:
            return "equal to the bit"
        size = (
            "a failed row beside a good one"
            if np.isinf(self.relative)
            else f"{self.relative:.1e} of its size"
        )
        return f"output {self.output!r} differs by {size} in row {self.row}"


def compare(probe: Probe, first: Arrays, second: Arrays) -> Difference:
    """The largest difference of two answers, row by row, `(rows, *spec.shape)` for each output."""
    worst = Difference(0.0, 0.0, probe.box.outputs[0].name, 0, 0.0)
    outputs = zip(probe.box.outputs, first, second, probe.base, probe.measured.jitter, strict=True)
    for spec, one, other, base, jitter in outputs:
        away, size = distances(one, other), largest(base)
        row = int(np.argmax(away))
        relative = float(away[row]) / size
        if relative > worst.relative:
            excess = float(away[row]) / jitter if jitter > 0 else np.inf
            worst = Difference(relative, excess, spec.name, row, precision(one))
    return worst


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference in each row, `(rows,)` float64; infinite where only one of two is finite."""
    with np.errstate(all="ignore"):
        away = np.abs(one.astype(np.float64) - other.astype(np.float64)).reshape(len(one), -1)
    finite = [np.isfinite(array).reshape(len(array), -1) for array in (one, other)]
    away[~finite[0] & ~finite[1]] = 0.0
    away[finite[0] != finite[1]] = np.inf
    return away.max(axis=1)


def largest(values: np.ndarray) -> float:
    """The largest finite absolute value; 1 where there is none but zeros."""
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def precision(array: np.ndarray) -> float:
    """The rounding unit of an array's floats; 0 for whole numbers."""
    return float(np.finfo(array.dtype).eps) if np.issubdtype(array.dtype, np.floating) else 0.0


def finding(check: str, difference: Difference, good: str, bad: str) -> Finding:
    """A finding about two answers that should be equal: `good` if they are, else `bad` with the mend."""
    verdict = difference.verdict
    sentence = f"{good} ({difference.words()})." if verdict is Verdict.OK else f"{bad}: {difference.words()}."
    return Finding(check, verdict, sentence, difference.relative, "of the output's size")
