"""The picture of `estimators`: cosine against queries, and training loss against queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmarks.estimators.quality import expected_cosine
from benchmarks.estimators.training import EACH
from benchmarks.protocol import RESULTS
from tasks.report.pictures import figure, save

# Okabe and Ito (2008), as in tasks.report.pictures; a second sign beside the colour
LOOK = {
    "CGE": ("#d55e00", "v"),
    "RGE": ("#56b4e9", "o"),
    "hybrid": ("#cc79a7", "s"),
    "per row": ("#009e73", "P"),
    "autograd": ("#000000", "^"),
    "torchopt": ("#8c6d31", "X"),
}
COSINES = {
    "CGE, random set, forward": ("CGE, random set", "CGE"),
    "RGE, gaussian, forward": ("RGE, Gaussian", "RGE"),
    "hybrid, the biases": ("hybrid (CGE on the biases)", "hybrid"),
    "per row, orthogonal, forward": ("per row, orthogonal", "per row"),
    "torchopt, forward / sigma^2": ("torchopt, forward / sigma^2", "torchopt"),
}
LOSSES = COSINES | {"autograd (first order)": ("autograd, as many steps", "autograd")}


def picture(qualities: Sequence[Mapping[str, Any]], trainings: Sequence[Mapping[str, Any]]) -> None:
    """Write `results/estimators.png`: a column for each problem; bands are a deviation over seeds."""
    problems = list(dict.fromkeys(row["problem"] for row in qualities))
    made, axes = figure(8.2, 6.4, rows=2, columns=len(problems))
    for column, problem in enumerate(problems):
        fresh = [row for row in qualities if row["problem"] == problem and not row["trained steps"]]
        _cosines(axes[0, column], fresh)
        axes[0, column].set_title(problem)
        _losses(axes[1, column], [row for row in trainings if row["problem"] == problem])
    axes[0, 0].set_ylabel("cosine to the true gradient")
    axes[1, 0].set_ylabel("training loss")
    handles = {}
    for each in axes.flat:
        lines, names = each.get_legend_handles_labels()
        handles |= dict(zip(names, lines, strict=True))
    made.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    print(f"written to {save(made, RESULTS / 'estimators.png')}")


def _cosines(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for method, (label, kind) in COSINES.items():
        # a random set of all coordinates is all of them
        also = "CGE, all" if kind == "CGE" else method
        chosen = [row for row in rows if row["method"] in (method, also)]
        if not chosen:
            continue
        colour, mark = LOOK[kind]
        queries = [row["queries"] for row in chosen]
        cosine = np.array([row["cosine"] for row in chosen])
        deviation = np.array([row["cosine, deviation"] for row in chosen])
        axes.plot(queries, cosine, color=colour, marker=mark, markersize=5, linewidth=1.8, label=label)
        axes.fill_between(
            queries, cosine - deviation, cosine + deviation, color=colour, alpha=0.15, linewidth=0
        )
    weights = rows[0]["weights"]
    budgets = np.geomspace(min(row["queries"] for row in rows), max(row["queries"] for row in rows), 60)
    theory = [expected_cosine(int(queries), weights) for queries in budgets]
    axes.plot(
        budgets,
        theory,
        color="#606060",
        linewidth=1.2,
        linestyle=(0, (5, 3)),
        label="RGE, sqrt(q / (q + d + 1))",
    )
    axes.set_xscale("log")
    ticks = sorted({row["queries"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="queries of one estimate", ylim=(-0.08, 1.03))


def _losses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if row["method"] not in LOSSES or row["queries a step"] not in (0, EACH):
            continue
        label, kind = LOSSES[row["method"]]
        colour, mark = LOOK[kind]
        axes.plot(
            EACH * np.array(row["curve, steps"]), row["curve, mean loss"], color=colour, marker=mark,
            markersize=4, linewidth=1.8, linestyle=(0, (5, 3)) if kind == "autograd" else "-", label=label,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel(f"queries, {EACH} a step")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
