"""ECnoise: the noise level of functions from a table of differences on equally spaced points.

Moré and Wild, *Estimating computational noise*, SIAM J. Sci. Comput. 33 (2011) 1292-1314.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

AGREE = 4.0  # the paper's factor between the estimates of three orders in a row
RANGE = 0.1  # values that vary by more, relative to their size, are too far apart


class Status(IntEnum):
    """What became of one function; the paper's `inform`."""

    DETECTED = 1
    TOO_CLOSE = 2  # half of the neighbouring values are equal: 100 times the spacing is next
    TOO_FAR = 3  # the function, not its noise, makes the differences: a hundredth is next


@dataclass(frozen=True)
class NoiseLevels:
    """Standard deviations of the noise, one for each function.

    Attributes:
        level: `(functions,)`, NaN where none was detected.
        status: `(functions,)` of `Status`.
    """

    level: np.ndarray
    status: np.ndarray


def ecnoise(values: np.ndarray, size: np.ndarray | None = None) -> NoiseLevels:
    """Noise levels of functions known on a short line.

    k-th differences of a smooth function go to zero with the k-th power of the spacing, those of noise with
    standard deviation s have variance s^2 (2k)! / (k!)^2. The estimate of the lowest order is taken that
    agrees with those of the next two orders, where the differences change sign.

    Args:
        values: `(functions, points)`, at least 4 points; the paper recommends 7 or more.
        size: `(functions,)`, what the range of values is compared with; None for the largest of them.
    """
    values = np.asarray(values, np.float64)
    functions, points = values.shape
    if points < 4:
        raise ValueError(f"ecnoise, values: expected at least 4 points, got {points}. Take 8.")
    compared = np.abs(values).max(axis=1) if size is None else size
    status = np.full(functions, Status.TOO_FAR, int)
    level = np.full(functions, np.nan)
    near = np.ptp(values, axis=1) <= RANGE * compared  # NaN is not near
    equal = (np.diff(values, axis=1) == 0).sum(axis=1) >= points / 2
    levels, signs, gamma = [], [], 1.0
    table = values
    for order in range(1, points):
        table = np.diff(table, axis=1)
        gamma *= order / (2 * (2 * order - 1))  # (k!)^2 / (2k)!
        levels.append(np.sqrt(gamma * np.square(table).mean(axis=1)))
        signs.append((table.min(axis=1) < 0) & (table.max(axis=1) > 0))
    for order in reversed(range(points - 3)):
        three = np.stack(levels[order : order + 3])
        agree = (three.max(axis=0) <= AGREE * three.min(axis=0)) & signs[order] & (three.min(axis=0) > 0)
        found = agree & near & ~equal
        level[found], status[found] = levels[order][found], Status.DETECTED
    status[equal & near] = Status.TOO_CLOSE
    return NoiseLevels(level, status)
