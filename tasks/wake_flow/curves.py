"""The wake-flow curves: error over time and over Re, and the flow's own figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tasks.report import pictures
from tasks.wake_flow.config import Config
from tasks.wake_flow.diagnostics import DIAMETER
from tasks.wake_flow.evaluation import REFERENCE, Evaluation
from tasks.wake_flow.pictures import SHOWN

ACROSS = 4  # entries of a legend in a line

Found = Mapping[int, Evaluation]  # by seed


def by_reynolds(found: Found, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean error at each test Reynolds number: `(reynolds,)` in rising order and `(seeds, reynolds)`."""
    numbers = np.unique(next(iter(found.values())).reynolds)
    means = [
        [each.tracks[method].error[each.reynolds == number].mean() for number in numbers]
        for each in found.values()
    ]
    return numbers, np.array(means)


def errors(found: Found, config: Config, path: Path) -> Path:
    """Error over time, of the held-out rollouts, and at each Reynolds number, with what seeds span."""
    made, (above, below) = pictures.figure(6.4, 6.6, rows=2, columns=1)[0:2]
    over_time, over_reynolds = above[0], below[0]
    methods = next(iter(found.values())).methods
    times = np.arange(1, config.horizon + 1) * config.dt / DIAMETER
    curves = {}
    for method in methods:
        seeds = np.array([each.errors[method].mean(axis=0) for each in found.values()])
        curves[method] = times, seeds.mean(axis=0)
        band(over_time, times, seeds, method)
    pictures.against(over_time, curves, x="time (D / U)", y="MAE of velocity", unit="U", legend=ACROSS)
    over_time.axvline(config.unroll * config.dt / DIAMETER, color="#999999", linestyle=":", linewidth=1)
    over_time.set_ylim(bottom=0)

    curves = {}
    for method in methods:
        numbers, seeds = by_reynolds(found, method)
        curves[method] = numbers, seeds.mean(axis=0)
        band(over_reynolds, numbers, seeds, method)
    pictures.against(
        over_reynolds, curves, x="Reynolds number", y="MAE of velocity", unit="U", log_x=True, legend=0
    )
    numbers = np.unique(next(iter(found.values())).reynolds)
    over_reynolds.set_xticks(numbers, [f"{number:g}" for number in numbers])
    over_reynolds.set_xticks([], minor=True)
    for edge in (min(config.train_reynolds), max(config.train_reynolds)):
        if numbers[0] < edge < numbers[-1]:  # or every number on that side is within the range trained on
            over_reynolds.axvline(edge, color="#999999", linestyle="--", linewidth=1)
    over_reynolds.set_ylim(bottom=0)
    return pictures.save(made, path)


def physics(found: Evaluation, config: Config, path: Path) -> Path:
    """Divergence and kinetic energy over time, with the reference's."""
    names = (REFERENCE, *(method for method in SHOWN if method in found.tracks))
    made, axes = pictures.figure(6.4, 5.8, rows=2, columns=1)
    times = np.arange(1, config.horizon + 1) * config.dt / DIAMETER
    rows = found.held_out
    for place, series, label, unit in (
        (axes[0, 0], "divergence_mean", "mean |divergence|", "U / D"),
        (axes[1, 0], "energy", "kinetic energy", "U²"),
    ):
        curves = {name: (times, getattr(found.tracks[name], series)[rows].mean(axis=0)) for name in names}
        first = place is axes[0, 0]
        pictures.against(
            place, curves, x="time (D / U)", y=label, unit=unit, log_y=first, legend=ACROSS if first else 0
        )
    return pictures.save(made, path)


def band(axes: Axes, across: np.ndarray, seeds: np.ndarray, method: str) -> None:
    """What several seeds span, from the first point with a cost on: the axis may be logarithmic."""
    if len(seeds) > 1:
        low, high = seeds[:, across > 0].min(axis=0), seeds[:, across > 0].max(axis=0)
        across = across[across > 0]
        axes.fill_between(across, low, high, color=pictures.colour(method), alpha=0.15, linewidth=0)
