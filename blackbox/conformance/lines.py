"""Straight lines through samples, and the answers along them as plain columns of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from blackbox.conformance.probe import Arrays, Probe


def precision(array: np.ndarray) -> float:
    """The rounding unit of an array's floats; 0 for whole numbers."""
    return float(np.finfo(array.dtype).eps) if np.issubdtype(array.dtype, np.floating) else 0.0


COLUMNS = 512  # output numbers looked at; more say nothing new
ROWS, NUMBERS = 512, 2**22  # of one call, at most; and of its inputs, which bounds the memory for images
ROUNDING = 0.2  # of a rounding unit: the standard deviation of rounding, for numbers spread over a binade

Kind = Literal["coordinates", "directions"]


@dataclass(frozen=True)
class Lines:
    """Lines in one input; all other inputs stay as in the samples.

    Attributes:
        place: which input.
        rows: `(lines,)`, the sample that each line goes through.
        directions: `(lines, size)`, of unit length in the unit of the input's numbers (`Probe.unit`).
        longest: the length over which the input varies along such a line, in that unit, as all lengths are.
        shortest: the length below which the input's own rounding shows.
    """

    place: int
    rows: np.ndarray
    directions: np.ndarray
    longest: float
    shortest: float

    def points(self, probe: Probe, which: np.ndarray, lengths: np.ndarray) -> Arrays:
        """The inputs on the lines `which`, `(points,)`, at these lengths from the samples, `(points,)`."""
        arrays = list(probe.pick(self.rows[which]))
        values = arrays[self.place]
        moved = values.reshape(len(values), -1).astype(np.float64) + self.directions[which] * lengths[:, None]
        arrays[self.place] = moved.reshape(values.shape).astype(values.dtype)
        return tuple(arrays)


class Responses:
    """The numbers that checks look at: up to 512 of the differentiable outputs, over their spread.

    Attributes:
        probe: calls the black box.
        places: which outputs are differentiable.
        output: `(columns,)`, the output that each column is a number of.
        spread: for each output, the standard deviation of its numbers over the samples.
        precision: for each output, the rounding unit of its floats.
        size: `(columns,)`, root mean square over the samples, in units of the spread.
        rounding: `(columns,)`, standard deviation of the rounding of such numbers, in units of the spread.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        specs = probe.box.outputs
        self.places = [place for place, spec in enumerate(specs) if spec.differentiable]
        counts = [math.prod(specs[place].shape) for place in self.places]
        total = sum(counts)
        keep = probe.generator.permutation(total)[:COLUMNS] if total > COLUMNS else np.arange(total)
        ends = np.cumsum([0, *counts])
        self.columns = [np.sort(keep[(keep >= a) & (keep < b)] - a) for a, b in pairwise(ends)]
        self.output = np.concatenate(
            [np.full(len(c), p) for p, c in zip(self.places, self.columns, strict=True)]
        )
        self.spread = [_spread(base) for base in probe.base]
        self.precision = [precision(base) for base in probe.base]
        self.size = np.sqrt(np.square(self(probe.base)).mean(axis=0))
        self.rounding = ROUNDING * np.array([self.precision[place] for place in self.output]) * self.size

    def __call__(self, answers: Arrays) -> np.ndarray:
        """`(rows, columns)` float64."""
        parts = [
            answers[place].reshape(len(answers[place]), -1)[:, columns].astype(np.float64)
            / self.spread[place]
            for place, columns in zip(self.places, self.columns, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def at(self, lines: Lines, which: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """`(points, columns)` on the lines `which` at these lengths, `(points,)`; NaN where a row failed."""
        most = max(1, min(ROWS, NUMBERS // lines.directions.shape[1]))
        blocks, first = [], 0
        while first < len(which):
            # At most four times what was answered together before: no call is far longer than foreseen.
            block = most if self.probe.seconds is None else min(most, 4 * max(self.probe.took, default=1))
            part = slice(first, first + block)
            blocks.append(self(self.probe(lines.points(self.probe, which[part], lengths[part]))))
            first += block
        answers = np.concatenate(blocks)
        answers[~np.isfinite(answers)] = np.nan
        return answers

    def along(self, lines: Lines, lengths: np.ndarray) -> np.ndarray:
        """`(lines, points, columns)` at these lengths, `(points,)`, on every line."""
        count = len(lines.rows)
        answers = self.at(lines, np.repeat(np.arange(count), len(lengths)), np.tile(lengths, count))
        return answers.reshape(count, len(lengths), -1)


def draw_lines(probe: Probe, place: int, count: int, kind: Kind) -> Lines:
    """Lines through samples taken in turn: along single coordinates, or in directions of a sphere."""
    unit, _ = probe.unit(place)
    samples = probe.samples[place].reshape(len(probe.samples[place]), -1).astype(np.float64) / unit
    size = samples.shape[1]
    if kind == "directions":
        directions = probe.generator.standard_normal((count, size))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        stretch = math.sqrt(size)  # so that a single number moves as far as along a coordinate
    else:
        order = np.resize(probe.generator.permutation(size), count)
        directions = np.zeros((count, size))
        directions[np.arange(count), order] = 1.0
        stretch = 1.0
    longest = _spread(samples) * stretch
    rounding = precision(probe.samples[place]) * math.sqrt(np.square(samples).mean()) * stretch
    rows = np.resize(probe.generator.permutation(len(samples)), count)
    return Lines(place, rows, directions * unit, longest, min(longest, 16 * rounding))


def _spread(values: np.ndarray) -> float:
    """Root mean square of the deviations of each number from its mean over rows; else the size; else 1."""
    values = values.reshape(len(values), -1).astype(np.float64)
    away = math.sqrt(np.square(values - values.mean(axis=0)).mean())
    size = math.sqrt(np.square(values).mean())
    return away if away > 1e-12 * size else size or 1.0
