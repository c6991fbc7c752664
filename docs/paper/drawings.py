"""The figures of the report and of the front page, each under the name of its file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures.measured import (
    RESULTS,
    as_advised,
    checked_gradients,
    curves,
    detections,
    over_first,
    over_tuned,
    read,
    rows,
)
from benchmarks.figures.summaries import interval, middle

BLUE, SKY, ORANGE, GREY, GREEN = "#0072b2", "#56b4e9", "#e69f00", "#777777", "#009e73"


def canvas(width: float, height: float, columns: int = 1, **settings: Any) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side."""
    figure = Figure((width, height), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(1, columns, **settings)).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels


def _ratio_axis(panel: Axes, ticks: Sequence[float], axis: str = "y") -> None:
    getattr(panel, f"set_{axis}scale")("log")
    getattr(panel, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()


WAYS = (
    ("first order (true derivative), tuned", "first order, tuned", GREY, "^", (0.05, 0.2, 1)),
    ("learned tangents, no replay", "tangents", ORANGE, "s", (0.05, 0.2)),
    ("learned tangents with replay", "replay", BLUE, "o", (0.05, 0.2)),
    ("several rates; a surrogate for controllers", "", GREEN, "D", (0.05, 0.2)),
)


def draw_rows() -> Figure:
    """Error over rows: medians over problems with their 95 % intervals, and single problems behind."""
    figure, (panel,) = canvas(6.6, 3.5)
    for number, (label, line, colour, mark, shares) in enumerate(WAYS):
        at = [share * 1.035 ** (number - 1) for share in shares]
        ratios_by_share = [
            over_tuned(f"{line}, {share:g}") if line else as_advised(share) for share in shares
        ]
        for name in rows():
            points = [median(ratios[name]) if name in ratios else math.nan for ratios in ratios_by_share]
            panel.plot(at, points, color=colour, lw=0.7, alpha=0.22, zorder=1)
        medians = [middle(ratios) for ratios in ratios_by_share]
        low, high = zip(
            *(
                interval(ratios) if share < 1 else (1, 1)
                for ratios, share in zip(ratios_by_share, shares, strict=True)
            ),
            strict=True,
        )
        errors = [
            [m - below for m, below in zip(medians, low, strict=True)],
            [above - m for m, above in zip(medians, high, strict=True)],
        ]
        panel.errorbar(
            at,
            medians,
            yerr=errors,
            color=colour,
            marker=mark,
            ms=7,
            lw=2.2,
            capsize=4,
            label=label,
            zorder=3,
        )
    panel.axhline(1, color="black", lw=0.8, ls=":")
    panel.set_xscale("log")
    panel.set_xticks([0.05, 0.2, 1], ["a twentieth", "a fifth", "all"])
    _ratio_axis(panel, (0.2, 0.5, 1, 2, 5, 10, 20))
    panel.set_xlabel("simulator rows spent in training, over the usual number", fontsize=9)
    panel.set_ylabel("test error, over first order's\ntuned at all rows", fontsize=9)
    panel.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


def draw_problems() -> Figure:
    """Every training: what is advised at a fifth of the rows, and tangents at the same number of steps."""
    figure, (left, right) = canvas(7.2, 5.6, 2, width_ratios=(1, 1.15))
    replayed = as_advised(0.2)
    names = sorted(replayed, key=lambda problem: median(replayed[problem]), reverse=True)
    for height, name in enumerate(names):
        equal = over_tuned("first order, tuned, 0.2")[name]
        left.scatter(
            equal,
            [height + 0.18] * len(equal),
            s=13,
            c=GREY,
            marker="^",
            label="first order tuned at a fifth" * (not height),
        )
        left.scatter(
            replayed[name],
            [height - 0.1] * len(replayed[name]),
            s=18,
            c=BLUE,
            label="several rates; a surrogate for controllers, a fifth" * (not height),
        )
        left.scatter([median(replayed[name])], [height - 0.1], s=110, c=BLUE, marker="|")
    left.set_yticks(range(len(names)), names, fontsize=7)
    left.set_xlabel("test error, over first order tuned at all rows", fontsize=8)
    _ratio_axis(left, (0.25, 0.5, 1, 2, 4), "x")
    chosen, cut = over_first("chosen"), over_first("no-gradient")
    names = sorted(chosen, key=lambda problem: fmean(chosen[problem]), reverse=True)
    for height, name in enumerate(names):
        right.scatter(
            [fmean(cut[name])],
            [height],
            s=16,
            facecolors="none",
            edgecolors=GREY,
            marker="D",
            label="gradient cut (mean)" * (not height),
        )
        right.scatter(
            chosen[name],
            [height] * len(chosen[name]),
            s=15,
            c=ORANGE,
            marker="s",
            label="tangents (seeds)" * (not height),
        )
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set_xlabel("test error, over first order, same steps", fontsize=8)
    _ratio_axis(right, (0.5, 1, 2, 5, 10, 40), "x")
    for panel in (left, right):
        panel.axvline(1, color="black", lw=0.8)
        panel.grid(axis="y", alpha=0.25)
        panel.set_axisbelow(True)
        panel.legend(
            frameon=False,
            fontsize=7,
            loc="lower center",
            bbox_to_anchor=(0.35, 1.04),
            ncols=2,
            columnspacing=1,
        )
    return figure


def draw_ks() -> Figure:
    """Kuramoto-Sivashinsky as in List et al.: error over steps, 1,600 of them, and 40,000 with one seed."""
    figure, (left, right) = canvas(7.2, 2.9, 2, sharey=True)
    shown = (
        ("first-order", "with the solver's gradient", GREY),
        ("no-gradient", "gradient cut (NOG)", ORANGE),
        ("chosen", "learned tangents", BLUE),
    )
    for panel, methods, title, ticks in (
        (left, curves()["ks-26-8"], "1,600 steps, three seeds", (200, 400, 800, 1600)),
        (
            right,
            read("tangents/ks-26-8-paper.json")["curves"],
            "40,000 steps, one seed",
            (5000, 10000, 20000, 40000),
        ),
    ):
        for method, label, colour in shown:
            for number, curve in enumerate(methods[method].values()):
                panel.loglog(
                    curve["steps"][1:],
                    curve["errors"][1:],
                    color=colour,
                    lw=1.4,
                    marker=".",
                    ms=4,
                    label=label * (not number),
                )
        panel.set_title(title, fontsize=9)
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.minorticks_off()
        panel.set_xlabel("steps of training", fontsize=9)
        panel.grid(alpha=0.25)
    left.set_ylabel("error over 12 frames", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    return figure


def draw_trust() -> Figure:
    """What a check says of a gradient, beside its cosine to the true one; and what limits find."""
    figure, (left, right) = canvas(7.2, 3.1, 2)
    cosines, agreements, _ = zip(*checked_gradients(), strict=True)
    left.scatter(cosines, np.clip(agreements, -1, 2.5), s=7, alpha=0.35, c=BLUE, linewidths=0)
    left.axvline(0.8, color="black", lw=0.8, ls=":")
    left.axhline(0.5, color="black", lw=0.8, ls=":")
    left.set_xlabel("cosine of the gradient to the true one", fontsize=9)
    left.set_ylabel("agreement in the last check\n(cut at -1 and 2.5)", fontsize=9)
    lines = (
        ("agreement below .5", "agreement < .5", "s", ORANGE),
        ("rows' cosine below .9 ", "rows < .9", "o", BLUE),
        ("rows' cosine below .95", "rows < .95", "o", SKY),
        ("`missed` above .496", "missed > .5", "v", GREEN),
        ("the rule before", "the rule before", "D", GREY),
        ("**the rule now**", "the rule now", "*", "black"),
    )
    for line, label, mark, colour in lines:
        rule = detections(line, "Tangents of usual strength alone")
        right.scatter([rule.false_share], [rule.found_share], marker=mark, c=colour, s=60, label=label)
    right.scatter([5.5], [80], marker="x", c="black", s=50, label="the goal")
    right.set_xlabel("false alarms, % of right gradients", fontsize=9)
    right.set_ylabel("found, % of wrong gradients", fontsize=9)
    right.set_xlim(0, 25)
    right.set_ylim(40, 100)
    right.legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def draw_meshes() -> Figure:
    """Cosines of the VJP with the exact adjoint's, boxes on meshes that are not of the tangent's own form."""
    vectors = {
        path.stem: read(f"meshes/{path.name}")["vectors"]
        for path in sorted((RESULTS / "meshes").glob("*.json"))
    }
    cases = [(box, nodes) for box, by_nodes in vectors.items() for nodes in by_nodes]
    figure, panels = canvas(7.2, 0.9 + 0.15 * len(cases), 2, sharey=True)
    ways = (
        ("identity", "identity", GREY, "D"),
        ("perceptron", "perceptron", ORANGE, "s"),
        ("layout", "learned implicit step", BLUE, "o"),
    )
    for panel, kind in zip(panels, ("white", "smooth"), strict=True):
        for way, label, colour, mark in ways:
            points = [
                (vectors[box][nodes][way][kind], height)
                for height, (box, nodes) in enumerate(cases)
                if way in vectors[box][nodes]
            ]
            panel.scatter(*zip(*points, strict=True), c=colour, marker=mark, s=24, label=label, zorder=3)
        panel.set_title(f"{kind} cotangents", fontsize=9)
        panel.set_xlim(-0.1, 1.05)
        panel.axvline(1, color="black", lw=0.8)
        panel.grid(axis="y", alpha=0.25)
        panel.set_xlabel("cosine with the exact adjoint", fontsize=9)
    panels[0].set_yticks(
        range(len(cases)), [f"{box}, {int(nodes):,} nodes" for box, nodes in cases], fontsize=7
    )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8
    )
    return figure


DRAWN: dict[str, Callable[[], Figure]] = {
    "rows": draw_rows,
    "problems": draw_problems,
    "ks": draw_ks,
    "trust": draw_trust,
    "meshes": draw_meshes,
}
