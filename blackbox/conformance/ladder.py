"""Differences on a ladder of steps, each half of the one before, along lines through the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from blackbox.conformance.lines import Lines, Responses
from blackbox.conformance.probe import OutOfRowsError, Probe

MOVED = 8  # numbers that must move at a step for its differences to be looked at
CLEAR = 3.0  # a difference counts when its root mean square is so many times what noise alone makes
BLOCK = 6  # steps of the ladder in one call


@dataclass
class Ladder:
    """Sums over lines and columns at steps h, largest first: squares of differences, and of the noise."""

    h: list[float]
    second: list[float]  # [f(h) - 2 f(0) + f(-h)]^2, no less than rounding makes it
    third: list[float]  # [f(2h) - 2 f(h) + 2 f(-h) - f(-2h)]^2 / 4; NaN on the first step
    first: list[float]  # [f(h) - f(-h)]^2 / 4
    expected: list[float]  # s^2 by ECnoise
    quantised: list[float]  # s^2 by the quantisation of those numbers that move
    moving: list[bool]  # whether enough numbers move for the sums to say something

    def noise_at_best(self) -> float:
        """s^2 of the noise at the step where forward differences are about best."""
        errors = [
            s / h**2 if m else math.inf for s, h, m in zip(self.second, self.h, self.moving, strict=True)
        ]
        level = int(np.argmin(errors))
        return max(self.second[level] / 14, self.quantised[level])

    def smallest_clear(self, squares: list[float], factor: float, noise: float) -> int | None:
        """The smallest step at which a difference stands out, the end of an unbroken run of such steps."""
        # Of few numbers that jump from step to step, the noise is that of more and more as h grows.
        clear = [s > CLEAR**2 * factor * max(noise, q) for s, q in zip(squares, self.quantised, strict=True)]
        last = None
        for level, good in enumerate(clear):
            if good:
                last = level
            elif last is not None and not any(clear[level : level + 2]):
                break
        return last

    def nearest(self, mu: float) -> int:
        """The step nearest to mu."""
        return int(np.argmin(np.abs(np.log(np.array(self.h) / mu))))


def climb_down(probe: Probe, responses: Responses, lines: Lines, noise: np.ndarray) -> Ladder | None:
    """Halve the step, from twice the input's spread on, until noise is all there is.

    Args:
        probe: the box.
        responses: what is looked at of it.
        lines: where.
        noise: `(columns,)`, of the responses.

    Returns:
        None where the outputs do not change along any line.
    """
    levels = max(2, 1 + math.ceil(math.log2(lines.longest / lines.shortest)) if lines.shortest > 0 else 48)
    steps = 2 * lines.longest * 2.0 ** -np.arange(levels)
    quanta = [probe.measured.quanta[place] / responses.spread[place] for place in responses.output]
    zero = responses.along(probe, lines, np.zeros(1))[:, 0]
    plus: list[np.ndarray] = []
    minus: list[np.ndarray] = []
    ladder = None
    for start in range(0, levels, BLOCK):
        block = steps[start : start + BLOCK]
        try:
            values = responses.along(probe, lines, np.concatenate([block, -block]))
        except OutOfRowsError:
            if start == 0:
                raise
            break
        plus += list(values[:, : len(block)].transpose(1, 0, 2))
        minus += list(values[:, len(block) :].transpose(1, 0, 2))
        # Numbers that never move, a saturated probability, have neither noise nor curvature here.
        active = np.any([(p != zero) & np.isfinite(p - zero) for p in [*plus, *minus]], axis=0)
        if not active.any():
            return None
        ladder = _sums(
            steps, zero, plus, minus, np.where(active, noise, np.nan), responses.rounding, np.array(quanta)
        )
        sums = zip(ladder.second[start:], ladder.third[start:], ladder.expected[start:], strict=True)
        if not any(second > CLEAR**2 * 6 * n or third > CLEAR**2 * 2.5 * n for second, third, n in sums):
            break
    return ladder


def _sums(
    steps: np.ndarray,
    zero: np.ndarray,
    plus: list[np.ndarray],
    minus: list[np.ndarray],
    noise: np.ndarray,
    rounding: np.ndarray,
    quanta: np.ndarray,
) -> Ladder:
    ladder = Ladder([], [], [], [], [], [], [])
    enough = min(MOVED, max(1, int(np.isfinite(noise).sum()) // 2))
    for level, (p, m) in enumerate(zip(plus, minus, strict=True)):
        second, first = p - 2 * zero + m, (p - m) / 2
        third = (plus[level - 1] - minus[level - 1]) / 2 - (p - m) if level else np.full_like(p, np.nan)
        seen = np.isfinite(noise) & np.isfinite(second) & (np.isfinite(third) | (level == 0))
        least = 6 * float(np.square(np.broadcast_to(rounding, seen.shape)[seen]).sum())
        ladder.h.append(float(steps[level]))
        ladder.second.append(max(float(np.square(second[seen]).sum()), least))
        ladder.third.append(float(np.square(third[seen]).sum()))
        ladder.first.append(float(np.square(first[seen]).sum()))
        ladder.expected.append(float(np.square(noise[seen]).sum()))
        moved = seen & ((p != zero) | (m != zero))
        ladder.quantised.append(float(np.square(np.broadcast_to(quanta, seen.shape)[moved]).sum()) / 12)
        ladder.moving.append(int(moved.sum()) >= enough)
    return ladder
