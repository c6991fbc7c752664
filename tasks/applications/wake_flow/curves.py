"""The wake-flow curves: error over time and over Re, and the flow's own figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tasks.applications.wake_flow.config import Config
from tasks.applications.wake_flow.diagnostics import DIAMETER
from tasks.applications.wake_flow.evaluation import REFERENCE, Tracks, held_out, methods
from tasks.report import pictures

ACROSS = 4  # entries of a legend in a line

BySeed = Mapping[int, Tracks]  # by seed


def by_reynolds(by_seed: BySeed, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean error at each test Reynolds number: `(reynolds,)` in rising order and `(seeds, reynolds)`."""
    reynolds = next(iter(by_seed.values()))[REFERENCE]["reynolds"]
    numbers = np.unique(reynolds)
    means = [
        [of_seed[method]["error"][reynolds == number].mean() for number in numbers]
        for of_seed in by_seed.values()
    ]
    return numbers, np.array(means)


def errors(by_seed: BySeed, config: Config, path: Path) -> Path:
    """Error over time, of the held-out rollouts, and at each Reynolds number, with what seeds span."""
    figure, axes = pictures.figure(6.4, 6.6, rows=2)
    over_time, over_reynolds = axes[:, 0]
    times = np.arange(1, config.horizon + 1) * config.dt / DIAMETER
    first = next(iter(by_seed.values()))
    rows, numbers = held_out(first[REFERENCE]["extrapolated"]), np.unique(first[REFERENCE]["reynolds"])
    for method, look in pictures.looks(methods(first)).items():
        seeds = np.array([of_seed[method]["error"][rows].mean(axis=0) for of_seed in by_seed.values()])
        draw(over_time, times, seeds, method, look)
        draw(over_reynolds, *by_reynolds(by_seed, method), method, look)
    over_time.axvline(config.unroll * config.dt / DIAMETER, color="#999999", linestyle=":", linewidth=1)
    over_time.set(xlabel="time (D / U)", ylabel="MAE of velocity (U)", ylim=(0, None))
    pictures.legend_above(over_time, ACROSS)
    over_reynolds.set_xscale("log")
    over_reynolds.set(xlabel="Reynolds number", ylabel="MAE of velocity (U)", ylim=(0, None))
    over_reynolds.set_xticks(numbers, [f"{number:g}" for number in numbers])
    over_reynolds.set_xticks([], minor=True)
    for edge in (min(config.train_reynolds), max(config.train_reynolds)):
        if numbers[0] < edge < numbers[-1]:  # or every number on that side is within the range trained on
            over_reynolds.axvline(edge, color="#999999", linestyle="--", linewidth=1)
    return pictures.save(figure, path)


def draw(
    axes: Axes, across: np.ndarray, seeds: np.ndarray, method: str, look_of_method: tuple[str, str]
) -> None:
    """The mean of several seeds' curves `(seeds, points)`, and what they span, in a colour with a mark."""
    colour, mark = look_of_method
    if len(seeds) > 1:
        axes.fill_between(across, seeds.min(axis=0), seeds.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    every = max(1, len(across) // 8)
    look = {"linewidth": 1.8, "marker": mark, "markersize": 4.5, "markevery": every}
    axes.plot(across, seeds.mean(axis=0), label=method, color=colour, **look)
