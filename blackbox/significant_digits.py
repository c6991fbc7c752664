"""The count of significant decimal digits in answers, if a program printed fewer than their dtype holds."""

from __future__ import annotations

import math

import numpy as np

MOST = {np.dtype(np.float32): 6, np.dtype(np.float64): 14}  # digits: with one more, chance would have some
FEWEST = 5  # different values
ENOUGH = 8  # digits that all of them together lack, each of those of its dtype: then it is no accident
VALUES = 300  # of those, at most so many are looked at


def significant_digits(values: np.ndarray) -> int | None:
    """The fewest significant decimal digits that all values keep when they are rounded to so many.

    `f"{v:.6g}"` prints six. Zeros and values that are not finite are left out. The values are those that the
    array has: numbers of float32 that were cast to float64 have all their digits.

    Args:
        values: any shape.

    Returns:
        1 to 6 of float32, 1 to 14 of float64; None where values have more digits, are of another dtype, or
        too few differ: fewer than 5, or so few that digits are missing by chance (8 values with 6 digits in
        float32 are enough, 5 in float64).
    """
    most = MOST.get(values.dtype)
    if most is None:
        return None
    numbers = values[np.isfinite(values) & (values != 0)]
    if len(numbers) < FEWEST:
        return None
    if any(not _keeps(value, most) for value in numbers[: 2 * FEWEST]):  # mostly so, and quickly seen
        return None
    different = np.unique(np.abs(numbers))
    if len(different) < FEWEST:
        return None
    different = different[:: math.ceil(len(different) / VALUES)]
    digits = 1
    for value in different:
        while not _keeps(value, digits):
            digits += 1
            if digits > most:
                return None
    return digits if len(different) * (most + 1 - digits) >= ENOUGH else None


def last_digit(size: float, digits: int) -> float:
    """Return the worth of one unit in the last of so many significant digits of a number of this size > 0."""
    return 10.0 ** (math.floor(math.log10(size)) + 1 - digits)


def _keeps(value: np.floating, digits: int) -> bool:
    """Say whether a value is its rounding to so many significant digits, in the value's dtype."""
    rounded = float(f"{float(value):.{digits}g}")
    with np.errstate(over="ignore"):
        return bool(value.dtype.type(rounded) == value)
