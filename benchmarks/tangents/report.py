"""The table and the picture of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from tasks.report import pictures
from tasks.runs import atomic

Curves = Mapping[str, Mapping[str, Any]]  # method -> seed -> a `Curve` as a dictionary
# how far above first order the tangents may be; of other problems only sparse CGE is the measure
GOALS = {
    "wake-1k": 1.05, "wake-30k": 1.05, "wake-260k": 1.05, "wake-32x64": 1.05,
    "kuramoto-sivashinsky": 1.10, "kuramoto-sivashinsky-long": 1.10,
}  # fmt: skip
CANDIDATES = ("recommended", "student, best kept")
COLOURS = {
    "FO": "#0072b2",
    "identity": "#606060",
    "dense": "#009e73",
    "memory": "#56b4e9",
    "conv + memory": "#e69f00",
    "local, 8 probes": "#cc79a7",
    "recommended": "#000000",
    "student": "#009e73",
    "student, best kept": "#000000",
    "RGE at the input": "#8c6d31",
    "sparse CGE": "#d55e00",
    "RGE": "#f0c75e",
}


def write(measured: Mapping[str, Any], folder: Path) -> None:
    """Write `table.md` and `error_against_rows.png`, and print the table.

    Args:
        measured: problem -> what its JSON file holds.
        folder: where they go.
    """
    if not measured:
        print("Nothing has been measured yet.")
        return
    text = table(measured)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / "table.md", text.encode())
    print(text)
    print(f"written to {folder / 'table.md'} and {picture(measured, folder / 'error_against_rows.png')}")


def table(measured: Mapping[str, Any]) -> str:
    """Markdown: a line for each method of each problem, and what became of the goals."""
    lines = [
        "Means over seeds of the error with the last weights; best kept: with those that validation chose, "
        "the start among them. Rows are those of the black box in training, + those of that validation; FO "
        "takes a derivative for each as well. Cosine: of the gradient to autograd's, mean over eight points "
        "of the training, lowest in brackets. Prediction error: of responses not yet learned from.",
        "",
        "| problem | method | error | to FO | best kept | rows | cosine | prediction error | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for problem, found in measured.items():
        curves: Curves = found["curves"]
        start = fmean(curve["errors"][0] for curve in next(iter(curves.values())).values())
        lines.append(f"| **{problem}** ({found['weights']:,} weights) | start | {start:.4f} | | | | | | |")
        lines += [_line(method, curves) for method in curves]
    lines += ["", "Goals:", ""]
    lines += [
        f"- {sentence}"
        for problem, found in measured.items()
        for sentence in verdicts(problem, found["curves"])
    ]
    return "\n".join(lines) + "\n"


def verdicts(problem: str, curves: Curves) -> list[str]:
    """Whether what is recommended keeps to first order, and is no worse than sparse CGE at equal rows."""
    found = []
    for method in (name for name in CANDIDATES if name in curves):
        error, goal = mean(curves[method]), GOALS.get(problem)
        if goal and "FO" in curves:
            ratio = error / mean(curves["FO"])
            word = "met" if ratio <= goal else "**missed**"
            found.append(f"{problem}, {method}: {ratio:.2f} times FO's error, goal {goal:g}: {word}.")
        if "sparse CGE" in curves:
            rows = fmean(c["rows"][-1] for c in curves[method].values())
            other = at_rows(curves["sparse CGE"], rows)
            spent = fmean(c["rows"][-1] for c in curves["sparse CGE"].values())
            word = "not worse" if error <= other else "**worse**"
            if spent < 0.9 * rows:  # in the middle of its schedule, with steps still long
                then = at_rows(curves[method], spent)
                word += f", but for {rows / spent:.1f} times its rows; with as many it was at {then:.4f}"
            found.append(f"{problem}, {method}: {error:.4f}, sparse CGE {other:.4f}: {word}.")
    return found


def at_rows(seeds: Mapping[str, Any], rows: float) -> float:
    """The mean error of the last weights within some rows."""
    errors = []
    for curve in seeds.values():
        within = [error for spent, error in zip(curve["rows"], curve["errors"], strict=True) if spent <= rows]
        errors.append(within[-1])
    return fmean(errors)


def mean(seeds: Mapping[str, Any]) -> float:
    """Of the errors with the last weights."""
    return fmean(curve["errors"][-1] for curve in seeds.values())


def _line(method: str, curves: Curves) -> str:
    seeds = list(curves[method].values())
    ratio = f"{mean(curves[method]) / mean(curves['FO']):.2f}" if "FO" in curves else ""
    kept_best = any(curve["kept"] for curve in seeds)
    cosines = [cosine for curve in seeds for cosine in curve["cosines"]]
    trust = [error for curve in seeds for error in curve["trust"]]
    notes = [f"trust lost in {sum(curve['warned'] > 0 for curve in seeds)} of {len(seeds)}"]
    kept = sum("start" in curve["kept"] for curve in seeds)
    notes = notes if any(curve["warned"] for curve in seeds) else []
    most = max(len(others) for others in curves.values())
    notes += [f"{len(seeds)} of {most} seeds"] if len(seeds) < most else []
    notes += [f"start kept in {kept} of {len(seeds)}"] if kept else []
    notes += ["ended early"] if any(curve["ended"] for curve in seeds) else []
    validation = fmean(curve["validation_rows"] for curve in seeds)
    choosing = f" + {validation:,.0f}" if validation else ""
    cells = (
        "",
        method,
        _spread([curve["errors"][-1] for curve in seeds]),
        ratio,
        _spread([curve["final"] for curve in seeds]) if kept_best else "",
        f"{fmean(curve['rows'][-1] for curve in seeds):,.0f}{choosing}",
        f"{fmean(cosines):.2f} ({min(cosines):.2f})" if cosines else "",
        f"{fmean(trust):.2f}" if trust else "",
        ", ".join(notes),
    )
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def picture(measured: Mapping[str, Any], path: Path) -> Path:
    """Error against rows, both logarithmic, a panel for each problem; the thin line is the start."""
    columns = 4
    made, axes = pictures.figure(
        15, 3.4 * -(-len(measured) // columns), rows=-(-len(measured) // columns), columns=columns
    )
    labelled: dict[str, Any] = {}
    for place, (problem, found) in zip(axes.flat, measured.items(), strict=False):
        for method, seeds in found["curves"].items():
            length = min(len(curve["errors"]) for curve in seeds.values())
            rows = np.mean([curve["rows"][:length] for curve in seeds.values()], axis=0)
            errors = np.mean([curve["errors"][:length] for curve in seeds.values()], axis=0)
            width = 2.2 if method in CANDIDATES else 1.2
            (line,) = place.plot(rows[1:], errors[1:], color=COLOURS[method], linewidth=width)
            if method in CANDIDATES:  # what it ends with, which need not be the last weights
                kept = fmean(curve["final"] for curve in seeds.values())
                place.plot(rows[-1], kept, "o", color=COLOURS[method], markersize=6)
            labelled.setdefault(method, line)
        first = next(iter(found["curves"].values()))
        place.axhline(fmean(curve["errors"][0] for curve in first.values()), color="#999999", linewidth=0.8)
        place.set(title=problem, xscale="log", yscale="log")
        place.xaxis.set_minor_formatter(NullFormatter())
        place.yaxis.set_major_formatter("{x:g}")
        place.yaxis.set_minor_formatter("{x:.3g}")
        low, high = place.get_ylim()
        place.set_ylim(max(low, 1e-4), min(high, 6 * fmean(c["errors"][0] for c in first.values())))
    for place in axes.flat[len(measured) :]:
        place.set_axis_off()
    for place in axes[-1]:
        place.set_xlabel("black-box rows")
    for place in axes[:, 0]:
        place.set_ylabel("held-out error")
    made.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=6, frameon=False)
    return pictures.save(made, path)
