"""The curves of training: errors and losses against what they cost, and the trust in a learned tangent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tasks.report import pictures
from tasks.runs.folder import Run
from tasks.wake_flow.curves import ACROSS, band
from tasks.wake_flow.limits import IN_LOOP, family_of


def training(run: Run, methods: Iterable[str], path: Path) -> Path:
    """Validation error and loss against solver rows in training; the mean over seeds, and what they span."""
    lines = metrics_by_stage(run)
    made, axes = pictures.figure(6.4, 6.6, rows=2, columns=1)
    validation, loss = {}, {}
    for method in methods:
        curves = [_curve(lines[_stage(seed, method)], "rows", "validation") for seed in run.seeds]
        rows, values = _together(curves)
        if len(rows):
            validation[method] = rows, values.mean(axis=0)
            band(axes[0, 0], rows, values, method)
        if family_of(method)[0] in IN_LOOP:  # losses of the others are one step deep, not to be compared
            curves = [_curve(lines[_stage(seed, method)], "rows", "loss") for seed in run.seeds]
            rows, values = _together([(r, _smooth(v)) for r, v in curves])
            if len(rows):
                loss[method] = rows, values.mean(axis=0)
                band(axes[1, 0], rows, values, method)
    rows = "solver rows in training"
    pictures.against(
        axes[0, 0], validation, x=rows, y="validation MAE", unit="U", log_x=True, log_y=True, legend=ACROSS
    )
    pictures.against(axes[1, 0], loss, x=rows, y="loss in training", log_x=True, log_y=True, legend=0)
    for place in axes.flat:
        _plain_numbers(place)
    return pictures.save(made, path)


def estimates(run: Run, path: Path) -> Path:
    """Validation error of ZO-SOL against its queries, and trust in TAN-SOL's tangent, of the first seed."""
    lines, seed = metrics_by_stage(run), run.seeds[0]
    made, axes = pictures.figure(6.4, 5.8, rows=2, columns=1)
    queries, values = _curve(lines[_stage(seed, "ZO-SOL")], "queries", "validation")
    levels = {}
    for method in ("NON", "FO-SOL"):
        found = _curve(lines[_stage(seed, method)], "rows", "validation")[1]
        if np.isfinite(found).any():
            levels[method] = float(np.nanmin(found))
    pictures.against(
        axes[0, 0], {"ZO-SOL": (queries, values)}, levels=levels, x="queries of ZO-SOL",
        y="validation MAE", unit="U", legend=ACROSS,
    )  # fmt: skip
    axes[0, 0].set_ylim(bottom=0)
    place, colour = axes[1, 0], pictures.colour("TAN-SOL")
    steps = list(enumerate(lines[_stage(seed, "TAN-SOL")], start=1))
    for name, label, marker, line in (
        ("tangent_error", "relative error of predictions", "", "-"),
        ("tangent_agreement", "slope along the gradient over its length", "P", ""),
    ):
        points = [(step, found[name]) for step, found in steps if name in found]
        if points:
            place.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, linestyle=line)
    place.set(xlabel="step of TAN-SOL", ylabel="trust in the tangent")
    place.set_ylim(bottom=0)
    if place.lines:
        place.legend(frameon=False, fontsize=9)
    return pictures.save(made, path)


def metrics_by_stage(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The lines of `metrics.jsonl`, read once; a stage that is not in it has none."""
    stages: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in run.metrics():
        stages[line["stage"]].append(line)
    return stages


def _stage(seed: int, method: str) -> str:
    return f"seed-{seed}/{method.lower().replace(' ', '-')}"


def _curve(lines: Sequence[Mapping[str, Any]], cost: str, merit: str) -> tuple[np.ndarray, np.ndarray]:
    """What was spent by, and found at, each line that has a figure of merit."""
    spent, costs, merits = 0.0, [], []
    for line in lines:
        spent = line.get(cost, spent)
        if merit in line:
            costs.append(spent)
            merits.append(line[merit])
    return np.array(costs), np.array(merits)


def _together(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean costs `(points,)` and merits `(seeds, points)` of the seeds' curves, as far as all of them go."""
    length = min(len(costs) for costs, _ in curves)
    costs, merits = ([pair[part][:length] for pair in curves] for part in (0, 1))
    return np.mean(costs, axis=0), np.array(merits)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value and those before it, up to a twentieth of them: losses hang on their batch."""
    width = max(1, len(values) // 20)
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - width)
    return (sums[last] - sums[first]) / (last - first)


def _plain_numbers(axes: Axes) -> None:
    """0.02, not 2 x 10^-2, on a logarithmic vertical axis; between decades at 2 and 5 alone."""

    def between(value: float, _: object) -> str:
        return f"{value:g}" if f"{value:e}"[0] in "25" else ""

    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(between)
