"""The look of every figure: one colour and one mark for each method, thin axes, no global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

REFERENCE = "#000000"
# Okabe and Ito (2008), and more between them: told apart with any colour vision, as a test measures; a
# method's larger network has a lighter shade of its colour
COLOURS = {
    "SRC": "#606060",
    "NON": "#e69f00",
    "PRE": "#cc79a7",
    "PRE-SR": "#a24b8a",
    "FO-SOL": "#0072b2",
    "ZO-SOL": "#d55e00",
    "chain": "#915d2e",
    "identity": "#6152c7",
    "TAN-SOL small": "#75b86d",
    "NON large": "#f0c75e",
    "PRE large": "#e3b1cc",
    "PRE-SR large": "#b684cb",
    "FO-SOL large": "#56b4e9",
    "ZO-SOL large": "#f7ab92",
    "chain large": "#bd8a51",
    "identity large": "#849ef7",
    "TAN-SOL": "#009e73",
}
# a second sign beside the colour, for print without colour
MARKS = {"SRC": "o", "NON": "s", "PRE": "D", "PRE-SR": "d", "FO-SOL": "^", "ZO-SOL": "v", "chain": "X"}
MARKS |= {"identity": "*", "TAN-SOL small": "p", "TAN-SOL": "P"}
MARKS |= {name: MARKS[name.removesuffix(" large")] for name in COLOURS if name.endswith(" large")}
_OTHERS = ("#a6761d", "#8c6d31", "#6a51a3", "#b3de69")

_INK = "#333333"


def colour(method: str) -> str:
    """The colour of a method, the same in every figure; one outside the table gets a fixed other one."""
    if method in COLOURS:
        return COLOURS[method]
    if method.lower() == "reference":
        return REFERENCE
    # not hash(): it differs from one process to the next
    return _OTHERS[sum(method.encode()) % len(_OTHERS)]


def figure(
    width: float = 6.4,
    height: float = 3.6,
    rows: int = 1,
    columns: int = 1,
    **grid: Any,  # noqa: ANN401
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches with `(rows, columns)` axes in the house style.

    Returns:
        The figure and an array `(rows, columns)` of its axes. No pyplot is involved: nothing has
        to be closed, and threads and tests do not see each other's figures.
    """
    made = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns, squeeze=False, **grid)
    for each in axes.flat:
        style(each)
    return made, axes


def style(axes: Axes) -> None:
    """Axes left and below only, a faint grid, text in the house's grey and sizes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=_INK, labelsize=9, width=0.8, length=3)
    axes.xaxis.label.set(color=_INK, size=10)
    axes.yaxis.label.set(color=_INK, size=10)
    axes.title.set(color=_INK, size=10.5)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def image_axes(axes: Axes) -> None:
    """Axes that hold a picture: no ticks, no grid, a thin frame."""
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set(color="#cccccc", linewidth=0.7)


def against(
    axes: Axes,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    x: str = "queries",
    y: str = "validation MAE",
    unit: str = "",
    levels: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    legend: int = 6,
) -> None:
    """Draw a figure of merit against what it cost, one line for each method.

    Args:
        axes: where to draw.
        curves: method -> (x values, y values); points that are not finite are left out.
        x: what the horizontal axis counts.
        y: what the vertical axis shows.
        unit: unit of `y`, shown in brackets; "" for none.
        levels: method -> value of methods without cost, drawn as dashed lines across.
        log_x: logarithmic horizontal axis, from the smallest positive value.
        log_y: logarithmic vertical axis.
        legend: its entries in a line; 0 for no legend.
    """
    for method, (across, up) in curves.items():
        points = np.array([across, up], dtype=float)
        keep = np.isfinite(points).all(axis=0) & (points[0] > 0 if log_x else True)
        points = points[:, keep]
        every = max(1, points.shape[1] // 8)
        axes.plot(
            *points, label=method, color=colour(method), linewidth=1.8,
            marker=MARKS.get(method, "o"), markersize=4.5, markevery=every,
        )  # fmt: skip
    for method, value in (levels or {}).items():
        axes.axhline(value, label=method, color=colour(method), linewidth=1.4, linestyle=(0, (5, 3)))
    axes.set_xlabel(x)
    axes.set_ylabel(f"{y} ({unit})" if unit else y)
    if log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_formatter(
            lambda value, _: f"{value:,.0f}" if value == round(value) else f"{value:g}"
        )
    if log_y:
        axes.set_yscale("log")
    if legend and (curves or levels):
        # above the axes: inside, a level across hides behind it or strikes it through
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=legend, frameon=False, fontsize=9,
            labelcolor=_INK, handlelength=1.6, columnspacing=1.4, borderpad=0.2,
        )  # fmt: skip


def save(made: Figure, path: Path, dots_per_inch: int = 160) -> Path:
    """Write a figure as PNG; metadata that changes from run to run is left out."""
    made.savefig(path, dpi=dots_per_inch, format="png", facecolor="white", metadata={"Software": None})
    return path
