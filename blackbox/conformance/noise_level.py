"""The noise level of a box's outputs: ECnoise on random lines, rounding, and quantisation."""

from __future__ import annotations

import math

import numpy as np

from blackbox.conformance.ecnoise import Status, ecnoise
from blackbox.conformance.lines import Lines, Responses
from blackbox.conformance.probe import Probe

POINTS = 8
TRIES = 5


def measure_noise(probe: Probe, responses: Responses, lines: Lines) -> np.ndarray:
    """The standard deviation of the noise in each column of the responses, in their units.

    Within one output all columns have the root mean square of what was detected; it is no less than a
    uniform error of its quantisation step, nor than the rounding of its floats.

    Returns:
        `(columns,)`.
    """
    detected = _detect(probe, responses, lines)
    noise = np.zeros(len(responses.output))
    for place in responses.places:
        own = responses.output == place
        levels = detected[:, own]
        found = levels[np.isfinite(levels)]
        level = math.sqrt(np.square(found).mean()) if found.size else 0.0
        quantum = probe.measured.quanta[place] / responses.spread[place] / math.sqrt(12)
        noise[own] = np.maximum(responses.rounding[own], max(level, quantum))
    return noise


def _detect(probe: Probe, responses: Responses, lines: Lines) -> np.ndarray:
    """`(lines, columns)`, NaN where no noise was detected, at the spacing where most was."""
    precision = max(responses.precision[place] for place in responses.places)
    spacing = max(math.sqrt(precision) * lines.longest, lines.shortest)
    size = np.broadcast_to(responses.size, (len(lines.rows), len(responses.size))).ravel()
    best, tried = np.full((len(lines.rows), len(responses.size)), np.nan), set()
    for _ in range(TRIES):
        tried.add(round(math.log10(spacing)))
        lengths = (np.arange(POINTS) - POINTS // 2) * spacing
        values = responses.along(probe, lines, lengths)
        table = values.transpose(0, 2, 1).reshape(-1, POINTS)
        result = ecnoise(table, size)
        level = result.level.reshape(best.shape)
        if np.isfinite(level).sum() > np.isfinite(best).sum():
            best = level
        moving = np.ptp(table, axis=1) > 0  # False for NaN too
        found = result.status == Status.DETECTED
        if moving.any() and found[moving].mean() >= 0.5:
            break
        close = (result.status == Status.TOO_CLOSE).sum() > (result.status == Status.TOO_FAR).sum()
        spacing = min(spacing * 100, lines.longest / POINTS) if close else max(spacing / 100, lines.shortest)
        if round(math.log10(spacing)) in tried:
            break
    return best
