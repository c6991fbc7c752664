"""The noise level of a box's outputs: ECnoise on short lines, rounding, and quantisation.

Moré and Wild, *Estimating computational noise*, SIAM J. Sci. Comput. 33 (2011) 1292-1314.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from blackbox.conformance.check_report import Finding, Verdict
from blackbox.conformance.lines import Lines, Responses, draw_lines
from blackbox.conformance.probe import Probe
from blackbox.significant_digits import last_digit, significant_digits

AGREE = 4.0  # the paper's factor between the estimates of three orders in a row
RANGE = 0.1  # values that vary by more, relative to their size, are too far apart
POINTS = 8  # on each line
TRIES = 5  # spacings
ENOUGH = 12  # different values that make a grid no accident
VALUES = 300  # of those, at most so many are looked at: the gaps among more are as small as rounding


class Status(IntEnum):
    """The result for one function; the paper's `inform`."""

    DETECTED = 1
    TOO_CLOSE = 2  # half of the neighbouring values are equal: 100 times the spacing is next
    TOO_FAR = 3  # the function, not its noise, makes the differences: a hundredth is next


@dataclass(frozen=True)
class NoiseLevels:
    """Standard deviations of the noise of functions.

    Attributes:
        level: `(functions,)`, NaN where no noise was detected.
        status: `(functions,)`, a `Status` each.
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
        size: `(functions,)`, the size that the range of a function's values is compared with. None takes the
            largest of its absolute values.

    Raises:
        ValueError: there are fewer than 4 points.
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
        detected = agree & near & ~equal
        level[detected], status[detected] = levels[order][detected], Status.DETECTED
    status[equal & near] = Status.TOO_CLOSE
    return NoiseLevels(level, status)


def measure_noise(responses: Responses, lines: Lines) -> np.ndarray:
    """The standard deviation of the noise in each column of the responses, `(columns,)`, in their units.

    All columns of one output have the root mean square of its detected noise, or the noise of its
    quantisation or rounding where that is larger.
    """
    detected = _detect(responses, lines)
    noise = np.zeros(len(responses.output))
    for place in responses.places:
        columns = responses.output == place
        levels = detected[:, columns]
        finite_levels = levels[np.isfinite(levels)]
        level = math.sqrt(np.square(finite_levels).mean()) if finite_levels.size else 0.0
        quantum = responses.probe.quanta[place] / responses.spread[place] / math.sqrt(12)
        noise[columns] = np.maximum(responses.rounding[columns], max(level, quantum))
    return noise


def _detect(responses: Responses, lines: Lines) -> np.ndarray:
    """`(lines, columns)`, NaN where no noise was detected, at the spacing where most was."""
    precision = max(responses.precision[place] for place in responses.places)
    spacing = max(math.sqrt(precision) * lines.longest, lines.shortest)
    size = np.broadcast_to(responses.size, (len(lines.rows), len(responses.size))).ravel()
    best, exponents = np.full((len(lines.rows), len(responses.size)), np.nan), set()
    for _ in range(TRIES):
        exponents.add(round(math.log10(spacing)))
        lengths = (np.arange(POINTS) - POINTS // 2) * spacing
        values = responses.along(lines, lengths)
        table = values.transpose(0, 2, 1).reshape(-1, POINTS)
        result = ecnoise(table, size)
        level = result.level.reshape(best.shape)
        if np.isfinite(level).sum() > np.isfinite(best).sum():
            best = level
        moving = np.ptp(table, axis=1) > 0  # False for NaN too
        detected = result.status == Status.DETECTED
        if moving.any() and detected[moving].mean() >= 0.5:
            break
        close = (result.status == Status.TOO_CLOSE).sum() > (result.status == Status.TOO_FAR).sum()
        spacing = min(spacing * 100, lines.longest / POINTS) if close else max(spacing / 100, lines.shortest)
        if round(math.log10(spacing)) in exponents:
            break
    return best


def quantisation(probe: Probe) -> Finding:
    """Answers to the samples and to points on lines: are they all on a grid, or printed with few digits?"""
    name = "quantisation"
    floats = [place for place, spec in enumerate(probe.box.outputs) if spec.differentiable]
    collected = [[probe.base[place].reshape(-1)] for place in floats]
    for place, spec in enumerate(probe.box.inputs):
        if spec.differentiable:
            lines = draw_lines(probe, place, 4, "directions")
            lengths = np.linspace(-0.5, 0.5, 9) * lines.longest
            answers = probe(lines.points(probe, np.repeat(np.arange(4), 9), np.tile(lengths, 4)))
            for values, output in zip(collected, floats, strict=True):
                values.append(answers[output].reshape(-1))
    grids = []
    for place, values in zip(floats, collected, strict=True):
        answers, output = np.concatenate(values), probe.box.outputs[place].name
        step = grid_step(answers)
        digits = None if step else significant_digits(answers)
        if digits:
            step = last_digit(float(np.abs(answers[np.isfinite(answers)]).max()), digits)
            words = f"has {digits} significant digits, the last a step of at most {step:.3g}"
        else:
            words = f"comes in steps of {step:.3g}"
        probe.quanta[place] = step
        if step:
            grids.append((step, output, words))
    if not grids:
        sentence = "Outputs are not rounded to fewer digits than their dtype has."
        return Finding(name, Verdict.OK, sentence, 0.0)
    step, output, words = max(grids)
    sentence = (
        f"Output {output!r} {words}: with a mu smaller than the recommended one most "
        "differences are zero. Write more digits, or keep to that mu."
    )
    return Finding(name, Verdict.WARNING, sentence, step, f"step of {output!r}")


def grid_step(values: np.ndarray) -> float:
    """The step of the widest grid that holds all values; 0 if only their own rounding does.

    Args:
        values: `(n,)` floats. Those that are not finite are left out.
    """
    eps = float(np.finfo(values.dtype).eps)
    values = values[np.isfinite(values)].astype(np.float64)
    different = np.unique(values)
    if len(different) < 2 or (len(different) < ENOUGH and len(values) < 4 * len(different)):
        return 0.0
    rounding = eps * np.abs(different).max()
    if len(different) > VALUES:
        different = different[np.random.default_rng(0).permutation(len(different))[:VALUES]]
        different.sort()
    offsets = different - different[0]
    gaps = np.diff(different)
    gaps = gaps[gaps > 8 * rounding]  # 0.1 and 0.1 + eps are one value of the grid
    if not len(gaps):
        return 0.0
    for part in range(1, 11):  # the smallest gap seen may be several steps wide
        step = float(gaps.min()) / part
        steps = np.rint(offsets / step)
        step = float(offsets[-1] / steps[-1])  # from the longest distance, where rounding counts least
        allowed = 4 * rounding / step
        if allowed > 0.05:
            return 0.0  # finer than can be distinguished from rounding
        if (np.abs(offsets / step - np.rint(offsets / step)) <= allowed + 1e-9).all():
            return step
    return 0.0
