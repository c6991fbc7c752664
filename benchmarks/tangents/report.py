"""The table of the benchmark of tangents."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from benchmarks import protocol
from benchmarks.tangents.methods import METHODS
from tasks.folder import atomic

Curves = Mapping[str, Mapping[str, Any]]  # method -> seed -> a `Curve` as a dictionary
EQUAL = 1.1  # times first order's rows, checks and all, is as many
SAME = 1.02  # times an error is no worse
UNCORRECTED = protocol.RESULTS / "tangents_uncorrected.json"  # not among the problems' files
LOST = 1e3  # stands for the ratio of a training that did not stay finite


def write(measured: Mapping[str, Any], folder: Path) -> None:
    """Write `table.md`, and print it.

    Args:
        measured: problem -> what its JSON file holds.
        folder: where it goes.
    """
    if not measured:
        print("Nothing has been measured yet.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = table(measured, uncorrected())
    atomic.write_bytes(folder / "table.md", text.encode())
    print(text)
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
    by_seed = []
    for seed, curve in curves.get(method, {}).items():
        first = curves.get("first-order", {}).get(seed)
        if first is None:
            continue
        most = math.inf if rows is None else rows * first["rows"][-1]
        error = within(curve, most)
        if error is not None:
            by_seed.append(_ratio(error, first["errors"][-1]))
    return by_seed


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
    shares = []
    for seed, curve in curves.get(method, {}).items():
        if seed in base:
            cost, base_cost = (
                record[what][-1] if what == "rows" else record[what] for record in (curve, base[seed])
            )
            shares.append(cost / base_cost if base_cost else math.nan)
    return fmean(shares) if shares else None


def _ratio(error: float | None, other: float | None) -> float:
    if error is None or not other or not math.isfinite(error):
        return LOST
    return min(LOST, error / other)


# The table


def uncorrected() -> dict[str, float]:
    """The errors of boxes alone, of problems whose networks correct them."""
    return json.loads(UNCORRECTED.read_text())["errors"] if UNCORRECTED.exists() else {}


def table(measured: Mapping[str, Any], alone: Mapping[str, float]) -> str:
    """Markdown: a line for each method over all problems, then one for each method of each problem.

    Args:
        measured: problem -> what its JSON file holds.
        alone: the error of the box alone, of problems whose networks correct it.
    """
    return "\n".join([*_summary(measured), "", *_by_problem(measured, alone)]) + "\n"


def _summary(measured: Mapping[str, Any]) -> list[str]:
    """Median, least and worst over the problems of size small."""
    measured = {name: result for name, result in measured.items() if result["size"] == "small"}
    lines = [
        "Error over first order's at each method's own end, median, least and worst over problems of size "
        "small, means of seeds; at equal rows: read off where first order's are spent, or up "
        f"to {EQUAL:g} times as many. No worse than no-gradient: at most {SAME:g} times its error. A "
        "training that did not stay finite counts as lost. Methods other than first-order, no-gradient "
        "and chosen are of earlier states; `origins` in a file has each one's.",
        "",
        "| method | problems | median | least | worst | on | median at equal rows | worst | rows / FO, "
        "median | seconds / FO, median | no worse than no-gradient |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in _methods(measured):
        by_problem = {name: ratios(result["curves"], method) for name, result in measured.items()}
        ends = {name: fmean(values) for name, values in by_problem.items() if values}
        equal = [
            fmean(values)
            for result in measured.values()
            if (values := ratios(result["curves"], method, EQUAL))
        ]
        beside = [over_no_gradient(result["curves"], method) for result in measured.values()]
        kept = [fmean(values) <= SAME for values in beside if values]
        costs = [
            [
                share
                for result in measured.values()
                if (share := spent(result["curves"], method, what)) is not None
            ]
            for what in ("rows", "seconds")
        ]
        worst = max(ends, key=ends.__getitem__) if ends else ""
        cells = (
            method,
            str(sum(method in result["curves"] for result in measured.values())),
            _number(median(ends.values())) if ends else "",
            _number(min(ends.values())) if ends else "",
            _number(ends[worst]) if ends else "",
            worst,
            _number(median(equal)) if equal else "",
            _number(max(equal)) if equal else "",
            *(_number(median(values)) if values else "" for values in costs),
            f"{sum(kept)} of {len(kept)}" if kept and method != "no-gradient" else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _by_problem(measured: Mapping[str, Any], alone: Mapping[str, float]) -> list[str]:
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
    for problem, result in measured.items():
        curves: Curves = result["curves"]
        value = ratios(curves, "no-gradient")
        worth = f"; no-gradient / FO {_number(fmean(value))}" if value else ""
        first = fmean(curve["errors"][0] for curve in next(iter(curves.values())).values())
        about = f"{result['weights']:,} weights, size {result['size']}{worth}. {result['hard']}".strip()
        lines.append(f"| **{problem}** ({about}) | start | {_error(first)} |  |  |  |  |  |  |  |  |")
        if problem in alone:
            firsts = [curve["errors"][-1] for curve in curves.get("first-order", {}).values()]
            over_first = _spread([_ratio(alone[problem], error) for error in firsts], _number)
            lines.append(f"|  | uncorrected | {_error(alone[problem])} | {over_first} |  |  |  |  |  |  |  |")
        lines += [_line(method, result) for method in _methods({problem: result})]
    return lines


def _line(method: str, result: Mapping[str, Any]) -> str:
    curves: Curves = result["curves"]
    seeds = list(curves[method].values())
    ends = [within(curve, math.inf) for curve in seeds]
    planned = seeds[0]["planned"]
    cosines = [cosine for curve in seeds for cosine in curve["cosines"] if cosine is not None]
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
        f"{planned:,}" if planned != result["steps"] else "",
        *("" if share is None else _number(share) for share in cost),
        f"{shares[0]:.0%}, {shares[1]:.0%}" if any(shares) else "",
        f"{fmean(cosines):.2f} ({min(cosines):.2f})" if cosines else "",
        _notes(seeds, result["scales"].get(method, 1.0)),
    )
    return f"| {' | '.join(cells)} |"


def _notes(seeds: Sequence[Mapping[str, Any]], scale: float) -> str:
    notes = []
    for key, word in (("tangent_error", "error"), ("tangent_agreement", "agreement")):
        known = [trust[key] for curve in seeds for trust in curve["trust"] if trust.get(key) is not None]
        notes += [f"{word} {fmean(known):.2f}"] if known else []
    warned = sum(bool(curve["warned"]) for curve in seeds)
    notes += [f"warned in {warned} of {len(seeds)}"] if warned else []
    notes += [f"scale {scale:g}"] if scale != 1.0 else []
    ended = next((curve for curve in seeds if curve["ended"]), None)
    notes += [f"ended at step {ended['steps'][-1]}"] if ended else []
    return ", ".join(notes)


def _methods(measured: Mapping[str, Any]) -> list[str]:
    """The methods that were measured, in the order of `METHODS`, then others."""
    there = {method for result in measured.values() for method in result["curves"]}
    return [*(name for name in METHODS if name in there), *sorted(there - set(METHODS))]


def _number(value: float) -> str:
    return "lost" if value >= LOST else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _error(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "lost"


def _spread(values: Sequence[float], form: Any) -> str:
    if not values:
        return ""
    if len(values) == 1 or max(values) >= LOST or not all(map(math.isfinite, values)):
        return form(fmean(values)) if all(map(math.isfinite, values)) else "lost"
    return f"{form(fmean(values))} ± {form(stdev(values))}"
