"""The pictures of the report: training against queries, certified accuracy against queries, images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tasks.denoised_smoothing.certification.accuracy import colour
from tasks.denoised_smoothing.limits import read
from tasks.denoised_smoothing.samples import Samples
from tasks.report import pictures
from tasks.runs.folder import Run
from tasks.runs.result import Result

MARKS = {
    "none": "o",
    "mse": "s",
    "fo-ds": "^",
    "zo-ds": "v",
    "zo-ae-ds": "D",
    "deepzero": "X",
    "student": "P",
}
LINES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
RADIUS = "certified accuracy at r = 0.25"
IMAGES = 8


def training(run: Run, methods: Sequence[str], path: Path) -> Path:
    """Accuracy on noisy held-out images, asked of the classifier, against the queries of training."""
    stages: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in run.metrics():
        stages[line["stage"]].append(line)
    made, axes = pictures.figure(6.4, 4.2)
    place, seen = axes[0, 0], defaultdict(int)
    for method in methods:
        asked = read(method)
        curves = [_validations(stages[f"seed-{seed}/{asked.stage}"]) for seed in run.seeds]
        length = min((len(queries) for queries, _ in curves), default=0)
        if asked.family in ("none", "mse") or length < 2:
            continue
        queries = np.mean([queries[:length] for queries, _ in curves], axis=0)
        values = np.array([values[:length] for _, values in curves])
        place.plot(
            queries, 100 * values.mean(axis=0), label=method, color=colour(asked.family), linewidth=1.8,
            linestyle=LINES[seen[asked.family] % len(LINES)], marker=MARKS[asked.family], markersize=4.5,
        )  # fmt: skip
        seen[asked.family] += 1
        if len(values) > 1:
            low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
            place.fill_between(queries, low, high, color=colour(asked.family), alpha=0.12, linewidth=0)
    place.set(xlabel="queries", ylabel="held-out accuracy under noise (%)")
    _logarithmic(place)
    _legend(place)
    return pictures.save(made, path)


def against_queries(result: Result, path: Path) -> Path:
    """Certified accuracy at r = .25 of each method against what its training asked for."""
    made, axes = pictures.figure(6.4, 4.2)
    place = axes[0, 0]
    points: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    levels: dict[str, list[float]] = defaultdict(list)
    for row in result.table:
        asked, value = read(row.method), 100 * float(row.extra[RADIUS] or 0)
        if not row.rows:
            levels[asked.family].append(value)
        else:
            points[asked.family, asked.way or ""][asked.queries or 0].append((row.rows, value))  # pyright: ignore
    for family, values in levels.items():
        place.axhline(
            float(np.mean(values)), label=family, color=colour(family), linewidth=1.4, linestyle=(0, (5, 3))
        )
    seen: dict[str, int] = defaultdict(int)
    for (family, way), budgets in points.items():
        means = sorted(tuple(np.mean(pairs, axis=0)) for pairs in budgets.values())
        place.plot(
            *zip(*means, strict=True), label=f"{family}:{way}" if way else family, color=colour(family),
            linewidth=1.8, marker=MARKS[family], markersize=6, linestyle=LINES[seen[family] % len(LINES)],
        )  # fmt: skip
        seen[family] += 1
        for pairs in budgets.values():
            if len(pairs) > 1:
                place.plot(*zip(*pairs, strict=True), "o", color=colour(family), markersize=2.5, alpha=0.6)
    place.set(xlabel="queries of training, all counted", ylabel="certified accuracy at r = 0.25 (%)")
    place.set_ylim(0, 103)
    _logarithmic(place)
    _legend(place)
    return pictures.save(made, path)


def images(found: Samples, chosen: Mapping[str, str], path: Path) -> Path:
    """Clean, noisy and denoised images: a row each, a column for an image.

    Args:
        found: of a seed.
        chosen: what a row is called -> the method.
        path: of the file.
    """
    rows = {"clean": found.clean, "noisy": found.noisy}
    rows |= {name: found.denoised[method] for name, method in chosen.items() if method in found.denoised}
    count = min(IMAGES, len(found.clean))
    made, axes = pictures.figure(0.78 * count + 1.2, 0.8 * len(rows) + 0.1, rows=len(rows), columns=count)
    for line, (name, shown) in zip(axes, rows.items(), strict=True):
        for place, image in zip(line, shown, strict=False):
            pictures.image_axes(place)
            picture = np.clip(image.transpose(1, 2, 0), 0, 1)
            place.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ink = "#333333" if name in ("clean", "noisy") else colour(name)
        line[0].set_ylabel(name, color=ink, fontweight="bold", rotation=0, ha="right", va="center")
    return pictures.save(made, path)


def _validations(lines: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Queries asked by, and accuracy at, each validation."""
    spent, costs, values = float("nan"), [], []
    for line in lines:
        spent = line.get("queries", spent)
        if "validation" in line:
            costs.append(spent)
            values.append(1 - line["validation"])
    if len(costs) > 1 and np.isnan(costs[0]):  # before the first step: what is fixed is paid by then
        first = next((line["queries"] for line in lines if "queries" in line), 1)
        costs[0] = first
    return np.array(costs), np.array(values)


def _logarithmic(axes: Axes) -> None:
    if any(len(line.get_xdata()) for line in axes.get_lines() if line.get_marker() not in ("None", None)):  # pyright: ignore
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        low, high = axes.get_xlim()
        between = "25" if high < 100 * low else ""  # over more decades they would run into each other
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:e}"[0] in between else "")


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, frameon=False, fontsize=9,
        labelcolor="#333333", handlelength=2.0, columnspacing=1.4, borderpad=0.2,
    )  # fmt: skip
