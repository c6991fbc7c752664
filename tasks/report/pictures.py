"""The look of every figure, one colour and one mark for each method; and panels of a problem's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from tasks.errors import ProblemError

REFERENCE = "#000000"
# Colour and mark of the methods that all problems have; a problem declares those of its own, as its `looks`.
# The colours, Okabe and Ito's (2008) and more between them, are told apart with any colour vision, as a test
# measures; the mark is a second sign, for print without colour
LOOKS = {
    "none": ("#606060", "o"),
    "no-gradient": ("#e69f00", "s"),
    "identity": ("#6152c7", "*"),
    "tangents": ("#009e73", "P"),
    "population": ("#849ef7", "X"),
    "student": ("#75b86d", "p"),
    "surrogate": ("#a24b8a", "8"),
    "sparse-cge": ("#d55e00", "v"),
    "cge": ("#915d2e", "D"),
    "rge": ("#cc79a7", "d"),
    "row-rge": ("#56b4e9", ">"),
    "first-order": ("#0072b2", "^"),
    "cma-es": ("#f0c75e", "H"),
    "sep-cma-es": ("#f7ab92", "<"),
}
_OTHERS = ("#b684cb", "#bd8a51", "#f0c75e", "#849ef7", "#f7ab92", "#e3b1cc")
_OTHER_MARKS = ("<", "X", "8", "H", "o", "s", "D")  # one more: a colour comes back with another mark
STRIP = 3.0  # a field longer than so many times its width is stretched to its panel
FLAT = 20.0  # times the height of a panel's curves: in a range that is wider they are a flat line
SHORT = 1.8  # decades of a logarithmic axis, below which numbers stand between powers of ten
OVERSHOOT = 0.1  # of the largest number: what less of the other sign is no second sign

INK = "#333333"
LEGEND: dict[str, Any] = {
    "frameon": False,
    "fontsize": 9,
    "labelcolor": INK,
    "handlelength": 2.2,
    "columnspacing": 1.4,
    "borderpad": 0.2,
}
_declared: ContextVar[Mapping[str, tuple[str, str]]] = ContextVar("looks", default=LOOKS)


def family(method: str) -> str:
    """A method's name without directions and budget, which stand behind ":" and "@"."""
    return re.split("[:@]", method)[0]


@contextmanager
def palette(looks: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """A block in which methods of a problem have the colour and the mark that it declares for them.

    Args:
        looks: Colour and mark by method, beside those of all problems.
    """
    token = _declared.set({**LOOKS, **looks})
    try:
        yield
    finally:
        _declared.reset(token)


def colour(method: str) -> str:
    """The colour of a method, the same in every figure; one that none declares gets a fixed other one."""
    if family(method) in _declared.get():
        return _declared.get()[family(method)][0]
    if method.lower() == "reference":
        return REFERENCE
    # not hash(): it differs from one process to the next
    return _OTHERS[sum(method.encode()) % len(_OTHERS)]


def looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of methods that share a figure; those that none declares get other ones."""
    declared = _declared.get()
    looks_of: dict[str, tuple[str, str]] = {}
    # of six colours and seven marks each pair comes once in 42
    more_looks = (pair for pair in zip(cycle(_OTHERS), cycle(_OTHER_MARKS)) if pair not in declared.values())
    for method in methods:
        look = declared.get(family(method))
        looks_of[method] = next(more_looks) if look is None or look in looks_of.values() else look
    return looks_of


@contextmanager
def own_settings() -> Iterator[None]:
    """A block in which pictures are made by Matplotlib's own settings, whatever `matplotlibrc` there is.

    One in the current folder may be anyone's, and the user's may ask for what is not there, such as LaTeX.
    """
    window = ("backend", "interactive")  # what shows figures in a window is not ours, and not restored
    settings: Any = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith(window)
    }
    with matplotlib.rc_context(settings):
        yield


def figure(
    width: float = 6.4, height: float = 3.6, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches with `(rows, columns)` axes in the house style.

    Returns:
        The figure and an array `(rows, columns)` of its axes. No pyplot is involved: nothing has
        to be closed, and threads and tests do not see each other's figures.
    """
    new_figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(new_figure)
    axes = new_figure.subplots(rows, columns, squeeze=False, **grid)
    for panel in axes.flat:
        style(panel)
    return new_figure, axes


def style(axes: Axes) -> None:
    """Axes left and below only, a faint grid, text in the house's grey and sizes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9, width=0.8, length=3)
    axes.tick_params(which="minor", labelcolor=INK, labelsize=8)  # of logarithmic axes of one or two decades
    axes.xaxis.label.set(color=INK, size=10)
    axes.yaxis.label.set(color=INK, size=10)
    axes.title.set(color=INK, size=10.5)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def image_axes(axes: Axes) -> None:
    """Axes that hold a picture: no ticks, no grid, a thin frame."""
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set(color="#cccccc", linewidth=0.7)


def panels(
    fields: Mapping[str, Mapping[str, Any]],
    draw: Callable[..., Any],
    *,
    rows: int = 1,
    columns: int | None = None,
    colours: str = "",
    size: tuple[float, float] = (3.0, 3.0),
    **axes: Any,
) -> Figure:
    """A problem's own picture: a column for each method, one scale of colours and of heights for all.

        def pictures(self, fields):
            return {"Error after the last step.": tasks.panels(
                fields, lambda axes, arrays: arrays["found"] - arrays["truth"], colours="K")}

    Args:
        fields: Arrays by method and name, as `pictures` gets them.
        draw: `draw(axes, arrays)`, with rows `draw(axes, arrays, row)`, draws a panel. It may return a field,
            `(height, width)`, or a curve, `(points,)`, which is then drawn. It may also return an artist with
            colours, such as `axes.scatter(...)` gives, or None. A field has its first line below; a long flat
            field is stretched to its panel, and a field of both signs is white at zero.
        rows: Panels of each method, from top to bottom.
        columns: Methods side by side; None for all of them.
        colours: The meaning of the colours, with the unit, such as "temperature (K)".
        size: Width and height of a panel, in inches.
        **axes: Settings of every panel's axes, such as `xlabel="cell"`, `ylim=(0, 1)` or `aspect="auto"`.
            Without `ylim`, panels of curves side by side have one range, unless it is twenty times the range
            of one of them.

    Raises:
        ProblemError: Contours have other levels in one panel than in another.
    """
    across = min(columns or len(fields), len(fields))
    down = -(-len(fields) // across) * rows
    new_figure, places = figure(size[0] * across, size[1] * down, down, across)
    coloured: list[Any] = []
    curves: dict[int, list[Axes]] = {}
    for (line, column), place in np.ndenumerate(places):
        number, row = line // rows * across + column, line % rows
        if number >= len(fields):
            place.set_visible(False)
            continue
        method, arrays = list(fields.items())[number]
        place.set(title=method if row == 0 else "", **axes)
        drawing = draw(place, arrays) if rows == 1 else draw(place, arrays, row)
        values = None if drawing is None or hasattr(drawing, "set_clim") else np.asarray(drawing)
        if values is not None and values.ndim == 2:
            image_axes(place)
            long = max(values.shape) > STRIP * min(values.shape)
            aspect = axes.get("aspect", "auto" if long else "equal")
            drawing = place.imshow(values, origin="lower", aspect=aspect)
        elif values is not None and values.ndim == 1:
            place.plot(values, color=colour(method))
        if place.lines and not (place.images or place.collections or "ylim" in axes):
            curves.setdefault(row, []).append(place)
        if hasattr(drawing, "set_clim"):
            coloured.append((drawing, values is not None))
    for side_by_side in curves.values():
        _share_heights(side_by_side)
    if coloured:
        _share_colours(coloured)
        new_figure.colorbar(coloured[0][0], ax=places, label=colours)
    return new_figure


def _share_colours(drawn: Sequence[tuple[Any, bool]]) -> None:
    """One scale of colours for all artists, with whether each is a field; of both signs white at zero."""
    contours = {tuple(drawing.levels) for drawing, _ in drawn if isinstance(drawing, ContourSet)}
    if len(contours) > 1:  # each would have colours of its own, and the bar those of the first
        raise ProblemError(
            f"panels: expected contours of the same levels in every panel, got {len(contours)} sets of them. "
            "Give axes.contour or axes.contourf the levels: levels=[...]."
        )
    free = [pair for pair in drawn if not isinstance(pair[0], ContourSet)]  # whose levels are a scale
    arrays = [np.ma.getdata(drawing.get_array()).ravel() for drawing, _ in free]
    values = np.concatenate([array[np.isfinite(array)] for array in arrays]) if free else np.zeros(0)
    if not len(values):
        return
    low, high = values.min(), values.max()
    if all(field for _, field in free) and min(high, -low) > OVERSHOOT * max(high, -low):
        low, high = -max(high, -low), max(high, -low)
        for drawing, _ in free:
            drawing.set_cmap("RdBu_r")
    for drawing, _ in free:
        drawing.set_clim(low, high)


def _share_heights(places: Sequence[Axes]) -> None:
    """One vertical range for panels that are compared; each its own where one would be a flat line in it."""
    if len({place.get_yscale() for place in places}) > 1:
        return
    limits = np.array([place.get_ylim() for place in places])
    plot_limits = np.log(limits) if places[0].get_yscale() == "log" else limits
    heights = np.abs(np.diff(plot_limits, axis=1))
    if plot_limits.max() - plot_limits.min() <= FLAT * heights.min():
        for place in places:
            low, high = limits.min(), limits.max()
            place.set_ylim(*((low, high) if limits[0, 0] < limits[0, 1] else (high, low)))


def legend_above(axes: Axes, columns: int) -> None:
    """A legend above the axes: inside, a level across hides behind it or strikes it through."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, **LEGEND)


def save(made: Figure, path: Path, dots_per_inch: int = 160) -> Path:
    """Write a figure as PNG; metadata that changes from run to run is left out."""
    for axes in made.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _label_decades(axis)
    made.savefig(path, dpi=dots_per_inch, format="png", facecolor="white", metadata={"Software": None})
    return path


def _label_decades(axis: Axis) -> None:
    """Numbers on a logarithmic axis that do not overprint: powers of ten, or few between where it is short.

    Matplotlib labels 2, 3, 4 and 6 of a decade, with a power of ten each. Ticks that were set by hand stay.
    """
    locator = axis.get_major_locator()
    if axis.get_scale() != "log" or type(locator) is not LogLocator or not axis.get_visible():
        return
    low, high = sorted(axis.get_view_interval())
    if low <= 0 or type(axis.get_minor_formatter()) is not LogFormatterSciNotation:
        return
    axis.set_minor_formatter(NullFormatter())
    decades = np.log10(high / low)
    if decades >= SHORT:
        return
    digits = (1, 2, 5) if decades < SHORT / 1.5 else (1, 3)
    between = [digit * 10.0**power for power in range(-300, 300) for digit in digits]
    places = [place for place in between if low <= place <= high]
    axis.set_major_locator(FixedLocator(places) if len(places) > 1 else MaxNLocator(3, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:g}")
    )
