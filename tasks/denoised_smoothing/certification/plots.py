"""Curves of certified accuracy against the radius, several methods together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from tasks.denoised_smoothing.certification.accuracy import accuracy_band, certified_accuracy
from tasks.denoised_smoothing.certification.summary import Runs
from tasks.report import pictures

# Okabe and Ito (2008) without the yellow, which is faint as a line; told apart with any colour vision
COLOURS = {
    "none": "#606060",
    "mse": "#e69f00",
    "fo-ds": "#0072b2",
    "zo-ds": "#d55e00",
    "zo-ae-ds": "#cc79a7",
    "deepzero": "#6152c7",
    "student": "#009e73",
}
STYLES = {"none": (0, (1, 1.4)), "fo-ds": (0, (5, 2))}  # the lower and the upper reference
# Of the first, second, ... method of a family in one figure, such as zo-ds:cge and zo-ds:rge
_VARIANTS = ("-", (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1)), (0, (8, 3)))
_POINTS = 600


def colour(method: str, variant: int = 0) -> str:
    """The colour of a method, the same in every figure: its family's, paler for its later variants.

    Args:
        method: its name; directions and a budget behind ":" and "@" are no part of the family.
        variant: how many of its family were before it.
    """
    family = re.split("[:@]", method)[0]
    red, green, blue = to_rgb(COLOURS.get(family, pictures.colour(family)))
    paler = 0.75 ** min(variant, 3)
    return to_hex((1 - (1 - red) * paler, 1 - (1 - green) * paler, 1 - (1 - blue) * paler))


def appearances(methods: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Colour and line style of each method of one figure, no two alike."""
    seen: Counter[str] = Counter()
    found = {}
    for method in methods:
        family = re.split("[:@]", method)[0]
        style = STYLES.get(method, _VARIANTS[seen[family] % len(_VARIANTS)])
        found[method] = (colour(method, seen[family]), style)
        seen[family] += 1
    return found


def certified_accuracy_axes(
    axes: Axes, runs: Runs, *, cap: float | None = None, largest: float | None = None, band: bool = True
) -> None:
    """Draw the curve of each method: mean over seeds, and how sure the number of images makes it.

    Args:
        axes: where to draw.
        runs: certificates by method and seed.
        cap: the largest radius that N can certify (`Settings.radius_cap`), marked by a line; None for none.
        largest: where the radii end; a little beyond the cap or the largest certificate if None.
        band: whether to shade the two-sided 95 % Clopper-Pearson limits, point by point, of as many images
            as one seed has; they stand for the draw of test images, not for that of training.
    """
    certificates = [one for seeds in runs.values() for each in seeds for one in each]
    reached = max((one.radius for one in certificates if one.correct), default=0.0)
    end = largest if largest is not None else 1.06 * max(reached, cap or 0.0, 1e-3)
    looks = appearances(runs)
    for method, seeds in runs.items():
        hue, style = looks[method]
        # the very radii at which a curve falls, and the number behind each: a step stays a step
        own = np.unique([one.radius for each in seeds for one in each if one.correct])
        grid = np.unique(np.concatenate([np.linspace(0, end, _POINTS), own, np.nextafter(own, np.inf)]))
        grid = grid[grid <= end]
        curves = np.stack([certified_accuracy(each, grid) for each in seeds])
        mean = curves.mean(axis=0)
        axes.plot(grid, 100 * mean, label=method, color=hue, linewidth=1.8, linestyle=style)
        if band:  # not beyond the cap, where zero is no matter of chance
            inside = grid <= (end if cap is None else cap)
            low, high = accuracy_band(mean[inside], len(seeds[0]))
            axes.fill_between(grid[inside], 100 * low, 100 * high, color=hue, alpha=0.12, linewidth=0)
    if cap is not None:
        axes.axvline(cap, color="#999999", linewidth=1.0, linestyle=(0, (2, 2)))
        axes.annotate(
            "cap of N", (cap, 1.0), xycoords=("data", "axes fraction"), xytext=(-3, -3),
            textcoords="offset points", ha="right", va="top", fontsize=8, color="#777777", rotation=90,
        )  # fmt: skip
    axes.set_xlim(0, end)
    axes.set_ylim(0, 100)
    axes.set_xlabel("l2 radius (white is 1 above black)")
    axes.set_ylabel("certified accuracy (%)")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, frameon=False, fontsize=9,
        labelcolor="#333333", handlelength=2.0, columnspacing=1.4, borderpad=0.2,
    )  # fmt: skip


def plot_certified_accuracy(
    path: Path, runs: Runs, *, cap: float | None = None, largest: float | None = None, band: bool = True
) -> Path:
    """Write the figure as PNG; arguments as of `certified_accuracy_axes`."""
    made, axes = pictures.figure(width=6.4, height=4.0)
    certified_accuracy_axes(axes[0, 0], runs, cap=cap, largest=largest, band=band)
    return pictures.save(made, path)
