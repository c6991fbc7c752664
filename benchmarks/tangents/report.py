"""The tables and the pictures of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator

from benchmarks.tangents import trust
from tasks.report import pictures
from tasks.runs import atomic

Curves = Mapping[str, Mapping[str, Any]]  # method -> seed -> a `Curve` as a dictionary
EQUAL = 1.1  # times first order's rows, checks and all, is as many
SAME = 1.02  # times an error is no worse
LOST = 1e3  # stands for the ratio of a training that did not stay finite
PICTURED = ("ks-26-8", "wake-30k")  # error against rows, for the README
PERTURBED = "first-order-perturbed"
# names of methods that put a learned tangent into the box's place
TANGENTS = ("chosen", "grid", "grid-without-map", "stencil", "mlp", "probes")
COLOURS = {
    "first-order": "#0072b2",
    PERTURBED: "#56a0d3",
    "no-gradient": "#e69f00",
    "identity": "#6152c7",
    "chosen": "#009e73",
    "grid": "#75b86d",
    "grid-without-map": "#b3d8ac",
    "stencil": "#56b4e9",
    "mlp": "#849ef7",
    "probes": "#cc79a7",
    "emulator-frozen": "#915d2e",
    "emulator-online": "#bd8a51",
    "astralora": "#a24b8a",
    "row-rge": "#8c6d31",
    "sparse-cge": "#d55e00",
    "rge": "#f0c75e",
    "zo-muon": "#f7ab92",
    "eggroll": "#b684cb",
    "ensemble-kalman": "#606060",
}


def write(measured: Mapping[str, Any], folder: Path) -> None:
    """Write `table.md`, `trust.md`, `error_against_rows.png` and `value_of_the_gradient.png`; print tables.

    Args:
        measured: problem -> what its JSON file holds.
        folder: where they go.
    """
    if not measured:
        print("Nothing has been measured yet.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("table.md", table(measured)), ("trust.md", trust.table(measured))):
        atomic.write_bytes(folder / name, text.encode())
        print(text)
    rows_picture(measured, folder / "error_against_rows.png")
    value_picture(measured, folder / "value_of_the_gradient.png")
    print(f"written to {folder}")


# Figures of one method on one problem


def ratios(curves: Curves, method: str, rows: float | None = None) -> list[float]:
    """Error over first order's, seed by seed.

    Args:
        curves: of the problem.
        method: its name.
        rows: within which the error is read off, over first order's; None for all.

    Returns:
        Over the seeds that both have; `LOST` for one that did not stay finite; empty without first order, or
        where nothing was read off within the rows.
    """
    found = []
    for seed, curve in curves.get(method, {}).items():
        first = curves.get("first-order", {}).get(seed)
        if first is None:
            continue
        most = math.inf if rows is None else rows * first["rows"][-1]
        error = within(curve, most)
        if error is not None:
            found.append(_ratio(error, first["errors"][-1]))
    return found


def within(curve: Mapping[str, Any], rows: float) -> float | None:
    """The last error that was taken within some rows; None where the start's alone was."""
    inside = [e for spent, e in zip(curve["rows"], curve["errors"], strict=True) if 0 < spent <= rows]
    if not inside:
        return None
    return math.inf if inside[-1] is None or curve["ended"] else inside[-1]


def over_no_gradient(curves: Curves, method: str) -> list[float]:
    """Error over no-gradient's, seed by seed."""
    pairs = (
        (curve, curves.get("no-gradient", {}).get(seed)) for seed, curve in curves.get(method, {}).items()
    )
    return [
        _ratio(within(curve, math.inf), other["errors"][-1]) for curve, other in pairs if other is not None
    ]


def spent(curves: Curves, method: str, what: str = "rows") -> float | None:
    """Rows, or seconds, over first order's, or no-gradient's where there is none: the mean over seeds."""
    base = curves.get("first-order") or curves.get("no-gradient", {})
    found = []
    for seed, curve in curves.get(method, {}).items():
        if seed in base:
            own, other = (each[what][-1] if what == "rows" else each[what] for each in (curve, base[seed]))
            found.append(own / other if other else math.nan)
    return fmean(found) if found else None


def _ratio(error: float | None, other: float | None) -> float:
    if error is None or not other or not math.isfinite(error):
        return LOST
    return min(LOST, error / other)


# The table


def table(measured: Mapping[str, Any]) -> str:
    """Markdown: a line for each method over all problems, then one for each method of each problem."""
    return "\n".join([*_summary(measured), "", *_each(measured)]) + "\n"


def _summary(measured: Mapping[str, Any]) -> list[str]:
    """Median, least and worst over the problems of size small."""
    measured = {name: found for name, found in measured.items() if found["size"] == "small"}
    lines = [
        "Error over first order's at each method's own end, median, least and worst over problems of size "
        "small, means of seeds; at equal rows: read off where first order's are spent, or up "
        f"to {EQUAL:g} times as many. No worse than no-gradient: at most {SAME:g} times its error. A "
        "training that did not stay finite counts as lost.",
        "",
        "| method | problems | median | least | worst | on | median at equal rows | worst | rows / FO, "
        "median | seconds / FO, median | no worse than no-gradient |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in _methods(measured):
        own = {name: ratios(found["curves"], method) for name, found in measured.items()}
        ends = {name: fmean(each) for name, each in own.items() if each}
        equal = [
            fmean(each) for found in measured.values() if (each := ratios(found["curves"], method, EQUAL))
        ]
        beside = [over_no_gradient(found["curves"], method) for found in measured.values()]
        kept = [fmean(each) <= SAME for each in beside if each]
        costs = [
            [
                each
                for found in measured.values()
                if (each := spent(found["curves"], method, what)) is not None
            ]
            for what in ("rows", "seconds")
        ]
        worst = max(ends, key=ends.__getitem__) if ends else ""
        cells = (
            method,
            str(sum(method in found["curves"] for found in measured.values())),
            _number(median(ends.values())) if ends else "",
            _number(min(ends.values())) if ends else "",
            _number(ends[worst]) if ends else "",
            worst,
            _number(median(equal)) if equal else "",
            _number(max(equal)) if equal else "",
            *(_number(median(each)) if each else "" for each in costs),
            f"{sum(kept)} of {len(kept)}" if kept and method != "no-gradient" else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _each(measured: Mapping[str, Any]) -> list[str]:
    """A line for each method of each problem."""
    lines = [
        "Error with the last weights, ± the standard deviation over the seeds where there are several. "
        "Steps, where they are not first order's. Fit, product: their shares of the seconds. Cosine: of "
        "the gradient (of ZO-Muon and ensemble Kalman: the step) to autograd's, the mean over eight "
        "points of the training, lowest in brackets. Trust: the tangent's own prediction error and "
        "agreement, means, and whether it warned; scale: of the learning rate, where one was chosen.",
        "",
        "| problem | method | error | over FO | at equal rows | steps | rows / FO | seconds / FO "
        "| fit, product | cosine | trust |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for problem, found in measured.items():
        curves: Curves = found["curves"]
        value = ratios(curves, "no-gradient")
        worth = f"; no-gradient / FO {_number(fmean(value))}" if value else ""
        first = fmean(curve["errors"][0] for curve in next(iter(curves.values())).values())
        about = f"{found['weights']:,} weights, size {found['size']}{worth}. {found['hard']}".strip()
        lines.append(f"| **{problem}** ({about}) | start | {_error(first)} |  |  |  |  |  |  |  |  |")
        lines += [_line(method, found) for method in _methods({problem: found})]
    return lines


def _line(method: str, found: Mapping[str, Any]) -> str:
    curves: Curves = found["curves"]
    seeds = list(curves[method].values())
    ends = [within(curve, math.inf) for curve in seeds]
    planned = seeds[0]["planned"]
    cosines = [each for curve in seeds for each in curve["cosines"] if each is not None]
    shares = [
        fmean(curve[name] / curve["seconds"] if curve["seconds"] else 0.0 for curve in seeds)
        for name in ("seconds_fitting", "seconds_vjp")
    ]
    cost = [spent(curves, method, what) for what in ("rows", "seconds")]
    cells = (
        "",
        method,
        _spread([math.nan if end is None else end for end in ends], _error),
        _spread(ratios(curves, method), _number),
        _spread(ratios(curves, method, EQUAL), _number),
        f"{planned:,}" if planned != found["steps"] else "",
        *("" if each is None else _number(each) for each in cost),
        f"{shares[0]:.0%}, {shares[1]:.0%}" if any(shares) else "",
        f"{fmean(cosines):.2f} ({min(cosines):.2f})" if cosines else "",
        _notes(seeds, found["scales"].get(method, 1.0)),
    )
    return f"| {' | '.join(cells)} |"


def _notes(seeds: Sequence[Mapping[str, Any]], scale: float) -> str:
    notes = []
    for key, word in (("tangent_error", "error"), ("tangent_agreement", "agreement")):
        known = [each[key] for curve in seeds for each in curve["trust"] if each.get(key) is not None]
        notes += [f"{word} {fmean(known):.2f}"] if known else []
    warned = sum(bool(curve["warned"]) for curve in seeds)
    notes += [f"warned in {warned} of {len(seeds)}"] if warned else []
    notes += [f"scale {scale:g}"] if scale != 1.0 else []
    ended = next((curve for curve in seeds if curve["ended"]), None)
    notes += [f"ended at step {ended['steps'][-1]}"] if ended else []
    return ", ".join(notes)


def _methods(measured: Mapping[str, Any]) -> list[str]:
    """Those that were measured, in the order of the colours, then others."""
    there = {method for found in measured.values() for method in found["curves"]}
    return [*(name for name in COLOURS if name in there), *sorted(there - set(COLOURS))]


def _number(value: float) -> str:
    return "lost" if value >= LOST else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _error(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "lost"


def _spread(values: Sequence[float], form: Any) -> str:  # noqa: ANN401
    if not values:
        return ""
    if len(values) == 1 or max(values) >= LOST or not all(map(math.isfinite, values)):
        return form(fmean(values)) if all(map(math.isfinite, values)) else "lost"
    return f"{form(fmean(values))} ± {form(stdev(values))}"


# The pictures


def rows_picture(measured: Mapping[str, Any], path: Path) -> Path:
    """Error against rows for some problems, both logarithmic; the thin line is the start."""
    names = [name for name in PICTURED if name in measured] or list(measured)[:2]
    made, axes = pictures.figure(6.2 * len(names), 4.6, columns=len(names))
    labelled: dict[str, Any] = {}
    for place, name in zip(np.atleast_1d(axes).flat, names, strict=False):
        curves = measured[name]["curves"]
        for method in _methods({name: measured[name]}):
            if method == PERTURBED:
                continue
            seeds = list(curves[method].values())
            length = min(len(curve["errors"]) for curve in seeds)
            rows, errors = (
                np.array([curve[key][:length] for curve in seeds], dtype=float).mean(axis=0)
                for key in ("rows", "errors")
            )
            bold = method in ("first-order", "no-gradient", *TANGENTS[:1])
            (line,) = place.plot(
                np.maximum(rows[1:], 1), errors[1:], color=COLOURS.get(method), linewidth=2.4 if bold else 1.2
            )
            place.plot(rows[-1], errors[-1], "o", color=COLOURS.get(method), markersize=6 if bold else 3.5)
            labelled.setdefault(method, line)
        start = fmean(curve["errors"][0] for curve in next(iter(curves.values())).values())
        place.axhline(start, color="#999999", linewidth=0.8)
        place.set(title=name, xscale="log", yscale="log", xlabel="black-box rows")
        for axis, form in ((place.xaxis, "{x:,.0f}"), (place.yaxis, "{x:g}")):
            axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
            axis.set_major_formatter(form)
            axis.set_minor_formatter(form)
        best = min(e for each in curves.values() for c in each.values() for e in c["errors"] if e is not None)
        place.set_ylim(0.85 * best, 1.5 * start)
    np.atleast_1d(axes).flat[0].set_ylabel("held-out error")
    made.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=3 * len(names), frameon=False
    )
    return pictures.save(made, path)


def value_picture(measured: Mapping[str, Any], path: Path) -> Path:
    """What the solver's gradient is worth on each problem against what each tangent loses of it."""
    made, axes = pictures.figure(8.0, 5.2)
    (place,) = np.atleast_1d(axes).flat
    points: dict[str, list[tuple[float, float]]] = {}
    names: dict[float, str] = {}
    for problem, found in measured.items():
        value = ratios(found["curves"], "no-gradient")
        if not value:
            continue
        names[fmean(value)] = problem
        for method in TANGENTS:
            own = ratios(found["curves"], method)
            if own:
                points.setdefault(method, []).append((fmean(value), fmean(own)))
    for method, pairs in points.items():
        x, y = (np.array(each) for each in zip(*pairs, strict=True))
        y = np.minimum(y, 2 * max(names))  # what is lost stands at the upper edge
        size = 60 if method in TANGENTS[:1] else 28
        place.scatter(x, y, s=size, color=COLOURS[method], label=method, alpha=0.85, linewidths=0)
    if names:
        low, high = min(names) / 1.1, max(names) * 1.1
        line = np.geomspace(low, high, 50)
        place.plot(line, line, color="#e69f00", linewidth=1.2, label="no-gradient")
        place.axhline(1.0, color=COLOURS["first-order"], linewidth=1.2, label="first order")
        own = {value: ratios(measured[name]["curves"], PERTURBED) for value, name in names.items()}
        bars = [(value, min(found), max(found)) for value, found in own.items() if found]
        if bars:
            label = "first order, its gradient off by 1 %"
            place.vlines(*zip(*bars, strict=True), color="#aaaaaa", linewidth=5, alpha=0.5, label=label)
        for value, name in names.items():
            place.annotate(
                name, (value, 0.0), xycoords=("data", "axes fraction"), xytext=(0, 4), fontsize=6.5,
                textcoords="offset points", rotation=90, ha="center", va="bottom", color="#777777",
            )  # fmt: skip
        place.set(xscale="log", yscale="log", xlim=(low, high))
    place.set(
        xlabel="what the solver's gradient is worth: error of no-gradient over first order's",
        ylabel="error of learned tangents over first order's",
    )
    for axis in (place.xaxis, place.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:.2g}")
    place.legend(frameon=False, fontsize=8)
    return pictures.save(made, path)
