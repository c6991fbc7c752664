"""The plot of a reproduction: ours as lines, published ones hollow, against what tells the groups apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tasks.report import pictures


@dataclass(frozen=True)
class Line:
    """A method of a group: accuracies on test images in percent, and what ours cost a seed.

    `validation` is on the held-out training images, by which settings may be chosen.
    """

    label: str | float
    method: str
    published: float | None
    ours: float | None
    spread: float
    seeds: int
    parameters: int
    queries: float
    seconds: float
    validation: float | None = None


def draw(table: Sequence[Line], across: str, path: Path) -> Path:
    """Accuracy of each method, ours and published (hollow): against numbers, or a row for each group.

    A single group has a row for each method.
    """
    labels = list(dict.fromkeys(line.label for line in table))
    numeric = all(isinstance(label, int | float) for label in labels) and len(labels) > 1
    made, axes = pictures.figure(6.4, 4.2 if numeric else max(2.4, 1.4 + 0.34 * max(len(labels), 6)))
    axis = axes[0, 0]
    if numeric:
        _against_numbers(axis, table, across)
    elif len(labels) == 1:
        order = sorted(table, key=lambda line: -1.0 if line.ours is None else -line.ours)
        _in_rows(axis, table, [line.method for line in order], [line.method for line in table])
    else:
        _in_rows(axis, table, [str(label) for label in labels], [str(line.label) for line in table])
        pictures.legend_above(axis, 2)
    return pictures.save(made, path)


def _in_rows(axis: Axes, table: Sequence[Line], rows: Sequence[str], own: Sequence[str]) -> None:
    """A row for each name, from the top down; `own` has each line's. Nothing joins what has no order."""
    methods = list(dict.fromkeys(line.method for line in table))
    look = pictures.looks(methods)
    alone = len(set(own)) == len(own)  # then nothing else is in a line's row
    named: set[str] = set()
    for line, name in zip(table, own, strict=True):
        number = methods.index(line.method)
        colour, mark = look[line.method]
        aside = 0.0 if alone else 0.22 * (number / max(1, len(methods) - 1) - 0.5)  # or one hides another
        place = rows.index(name) + aside
        if line.ours is not None:
            label = None if line.method in named else line.method
            axis.errorbar(
                line.ours, place, xerr=line.spread or None, label=label,
                color=colour, marker=mark, markersize=6, linestyle="", capsize=2,
            )  # fmt: skip
            named.add(line.method)
            if alone:
                said = f"{line.ours:.1f}" + (f" ± {line.spread:.1f}" if line.spread else "")
                axis.annotate(
                    said, (line.ours, place), (0, 7), textcoords="offset points", ha="center", fontsize=8
                )
        if line.published is not None:
            axis.plot(line.published, place, color=colour, marker=mark, markerfacecolor="none")
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.1)
    axis.set(xlabel="test accuracy (%)")


def _against_numbers(axis: Axes, table: Sequence[Line], across: str) -> None:
    look = pictures.looks(dict.fromkeys(line.method for line in table))
    for method in look:
        own = [line for line in table if line.method == method]
        colour, mark = look[method]
        where = np.array([float(line.label) for line in own])
        ours = np.array([np.nan if line.ours is None else line.ours for line in own])
        spread = np.array([line.spread for line in own])
        axis.errorbar(
            where, ours, spread if spread.any() else None, label=method, color=colour, marker=mark,
            markersize=5, linewidth=1.7, capsize=2,
        )  # fmt: skip
        published = np.array([np.nan if line.published is None else line.published for line in own])
        if np.isfinite(published).any():
            axis.plot(
                where, published, label=f"{method}, published", color=colour, marker=mark, markersize=6,
                markerfacecolor="none", linestyle=(0, (2, 2)), linewidth=1.2,
            )  # fmt: skip
    values = np.array([float(line.label) for line in table])
    if (values > 0).all() and values.max() > 20 * values.min():
        axis.set_xscale("log")
    axis.set(xlabel=across, ylabel="test accuracy (%)")
    pictures.legend_above(axis, 2)
