"""The figures that every run has: losses and trust over training, and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from tasks.report.pictures import INK, LEGEND, figure, looks

if TYPE_CHECKING:
    from tasks.report.findings import Curve

AGREEMENT = (-1.0, 3.0)  # checks beyond are drawn at the edge


def training(
    curves: Mapping[str, Mapping[int, Curve]], *, y: str, levels: Mapping[str, float] | None = None
) -> Figure:
    """A figure over training, against rows and against time: a faint line for each seed, and their mean.

    `levels` are values of methods without steps, as lines across; `y` is what the vertical axes show.
    """
    levels = levels or {}
    style_of = looks([*levels, *curves])
    every = [curve for seeds in curves.values() for curve in seeds.values()]
    counted = any(curve.rows.any() for curve in every)
    longest = max((np.nanmax(curve.seconds, initial=0.0) for curve in every), default=0.0)
    unit, second = _unit_of_time(float(longest))
    lines = -(-len(style_of) // 6)
    new_figure, axes = figure(8.0, 3.1 + 0.22 * lines, columns=2, sharey=True)
    for place, across in zip(axes[0], ("rows" if counted else "steps", "seconds"), strict=True):
        scale = second if across == "seconds" else 1.0
        log = _cost_axis(place, every, across, unit)
        for method, level in levels.items():
            place.axhline(
                level, label=method, color=style_of[method][0], linewidth=1.4, linestyle=(0, (5, 3))
            )
        for method, seeds in curves.items():
            colour_of, mark = style_of[method]
            seed_points = [(getattr(curve, across) / scale, curve.values) for curve in seeds.values()]
            if len(seed_points) > 1:
                for points in seed_points:
                    _line(place, points, log, color=colour_of, linewidth=0.8, alpha=0.4)
            middle = _mean(list(seeds.values()), across)
            line = (middle[0] / scale, middle[1])
            _line(place, line, log, color=colour_of, linewidth=1.7, label=method, marker=mark, markersize=4.5)
    values = [curve.values for curve in every] + [np.array(list(levels.values()))]
    if _decades(np.concatenate(values)) > 1:
        axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel(y, parse_math=False)  # a unit may have a $
    _legend(new_figure, axes[0, 0])
    return new_figure


def trust(
    errors: Mapping[str, Mapping[int, Curve]],
    agreements: Mapping[str, Mapping[int, Curve]],
    distrusted: Mapping[str, Mapping[int, Curve]],
) -> Figure:
    """Plot how far learned tangents can be believed, over the steps of training.

    Args:
        errors: The relative error of their predictions in each step, by method and seed; 1 predicts nothing.
            Of these and the agreements one may be empty, and has no panel then.
        agreements: In each check, the change of the loss along the gradient over the predicted change; drawn
            at the edge where it is far off.
        distrusted: Above 0 in steps without trust; a strip below shows them, with a lane for each method.
    """
    style_of = looks(dict.fromkeys([*errors, *agreements, *distrusted]))
    lanes = {
        method: seeds
        for method, seeds in distrusted.items()
        if any((curve.values > 0).any() for curve in seeds.values())
    }
    strip = 0.16 * len(lanes) + 0.05 if lanes else 0.0  # of height in inches
    heights = {"height_ratios": [2.2, strip]} if lanes else {}
    across = bool(errors) + bool(agreements)
    new_figure, axes = figure(8.0, 2.8 + strip, 1 + bool(lanes), across, sharex=True, **heights)
    smooth = {method: [curve.smooth() for curve in seeds.values()] for method, seeds in errors.items()}
    for method, curves in smooth.items():
        for number, curve in enumerate(curves):
            name = {} if number else {"label": method}
            points, colour_of = (curve.steps, curve.values), style_of[method][0]
            _line(axes[0, 0], points, False, color=colour_of, linewidth=1.4, alpha=0.8, **name)
    if errors:
        axes[0, 0].set(ylabel="relative error of predictions")
        if max(np.nanmax(curve.values, initial=0.0) for curves in smooth.values() for curve in curves) > 10:
            axes[0, 0].set_yscale("log")
        else:
            axes[0, 0].set_ylim(bottom=0.0)
    for method, seeds in agreements.items():
        colour_of, mark = style_of[method]
        if method not in errors:
            axes[0, 0].plot([], [], mark, color=colour_of, label=method)  # the legend is that of this panel
        for curve in seeds.values():
            values = np.clip(curve.values, *AGREEMENT)
            axes[0, -1].plot(curve.steps, values, mark, color=colour_of, markersize=4, alpha=0.8)
        axes[0, -1].set(ylabel="loss change / predicted", ylim=(AGREEMENT[0] - 0.1, AGREEMENT[1] + 0.1))
    for place in axes[0]:
        place.axhline(1.0, color="#999999", linewidth=1.0, linestyle=(0, (5, 3)))
    for place in axes[1:].flat:
        for lane, (method, seeds) in enumerate(lanes.items()):
            for curve in seeds.values():
                bars = place.broken_barh(_spans(curve.steps[curve.values > 0]), (lane + 0.1, 0.8))
                bars.set(color=style_of[method][0], alpha=1 / len(seeds) ** 0.5, linewidth=0)
        place.set(ylim=(len(lanes), 0), yticks=[])
        place.grid(visible=False)
        axes[1, 0].set_ylabel("no trust", rotation=0, ha="right", va="center")
    for place in axes[-1]:
        place.set(xlabel="optimiser steps")
    _legend(new_figure, axes[0, 0])
    return new_figure


def _spans(steps: np.ndarray) -> list[tuple[float, float]]:
    """Return the stretches of neighbouring steps: `(start, length)` of each."""
    parts = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
    return [(float(part[0]) - 0.5, float(len(part))) for part in parts if len(part)]


def compared(runs: Mapping[str, Mapping[str, Mapping[int, Curve]]], *, y: str) -> Figure:
    """Smoothed means over seeds against rows: methods by colour and mark, runs by the kind of line.

    Each curve has its run's name at its end, since there are seven kinds of line.
    """
    methods = dict.fromkeys(method for of_run in runs.values() for method in of_run)
    style_of = looks(methods)
    every = [curve for of_run in runs.values() for seeds in of_run.values() for curve in seeds.values()]
    across = "rows" if any(curve.rows.any() for curve in every) else "steps"
    new_figure, axes = figure(8.0, 4.0)
    place = axes[0, 0]
    log = _cost_axis(place, every, across)
    for number, (run, of_run) in enumerate(runs.items()):
        look = {"linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.5, "markersize": 4.5}
        place.plot([], [], color=INK, label=run, **look)
        for method, seeds in of_run.items():
            points = _mean([curve.smooth() for curve in seeds.values()], across)
            colour_of, mark = style_of[method]
            line = _line(place, points, log, color=colour_of, marker=mark, **look)
            if line.size:
                end = (float(line[0, -1]), float(line[1, -1]))
                place.annotate(
                    run, end, (4, -3), textcoords="offset points", color=colour_of, fontsize=8, bbox=_HALO
                )
    for method, (colour_of, mark) in style_of.items():
        place.plot([], [], color=colour_of, marker=mark, markersize=4.5, linewidth=1.5, label=method)
    if _decades(np.concatenate([curve.values for curve in every])) > 1:
        place.set_yscale("log")
    place.set_ylabel(y)
    wide = {**LEGEND, "handlelength": 4.5}  # in less two kinds of line look the same
    new_figure.legend(*place.get_legend_handles_labels(), loc="outside right upper", **wide)
    return new_figure


_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (10, 3)),
    (0, (6, 2, 1, 2, 1, 2)),
    (0, (3, 4)),
)
_HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}


def _cost_axis(axes: Axes, curves: Sequence[Curve], across: str, unit: str = "s") -> bool:
    """Name the axis of rows, steps or seconds; logarithmic where the ends of curves differ by tenfold."""
    names = {"rows": "rows in training", "steps": "optimiser steps", "seconds": f"time in steps ({unit})"}
    axes.set_xlabel(names[across])
    ends = [getattr(curve, across)[-1] for curve in curves]
    log = _decades([end for end in ends if end > 0]) > 1
    if log:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5 if max(ends) < 1e6 else 4))  # more long numbers overprint
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 100 else f"{value:g}")
    return log


def _legend(made: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if names:
        lines = -(-len(names) // 6)
        made.legend(handles, names, loc="outside upper left", ncols=-(-len(names) // lines), **LEGEND)


def _line(axes: Axes, points: tuple[ArrayLike, ArrayLike], log: bool, **look: Any) -> np.ndarray:
    """A line through the finite points; with a logarithmic axis from the first that has a place on it.

    Returns:
        The points that were drawn, `(2, points)`.
    """
    line = np.array(points, dtype=float)
    line = line[:, np.isfinite(line).all(axis=0) & ((line[0] > 0) if log else True)]
    axes.plot(*line, markevery=max(1, line.shape[1] // 8), **look)
    return line


def _mean(curves: Sequence[Curve], across: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several seeds' curves at the first one's steps, as far as all go."""
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = curves[0].steps[(curves[0].steps >= first) & (curves[0].steps <= last)]
    x, y = (
        np.mean([np.interp(steps, curve.steps, getattr(curve, name)) for curve in curves], axis=0)
        for name in (across, "values")
    )
    return x, y


def _decades(values: ArrayLike) -> float:
    """Return how many powers of ten finite values span; 0 where one of them is not above zero."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0 or finite.min() <= 0:
        return 0.0
    return float(np.log10(finite.max() / finite.min()))


def _unit_of_time(seconds: float) -> tuple[str, float]:
    """The unit in which so many seconds are read well, and its length."""
    return ("h", 3600.0) if seconds > 3 * 3600 else ("min", 60.0) if seconds > 180 else ("s", 1.0)
