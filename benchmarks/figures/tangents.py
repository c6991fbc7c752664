"""Learned tangents and their rivals, over first order at the same number of steps, and the box alone."""

from __future__ import annotations

from statistics import fmean, median

from benchmarks.figures.measured import curves, over_first, read, rows
from benchmarks.figures.summaries import quartiles, summary
from benchmarks.rows.ways import ALL_ROWS
from benchmarks.tangents.report import spent

SUMMED = ("chosen", "no-gradient")
RIVALS = ("emulator-online", "emulator-frozen")


def figures() -> dict[str, float]:
    """Figures of `tangents` and `tangents/fresh`, whose names begin with "fresh.", by name."""
    values = _methods("tangents", "") | _methods("tangents/fresh", "fresh.") | _alone() | _long()
    for method in RIVALS:
        values |= summary(method, over_first(method), fmean)
    low, high = quartiles(over_first("first-order-perturbed"))
    wall = curves()["double-pendulum-wall"]
    ends = [curve["errors"][-1] for curve in wall["first-order"].values()]
    runs = rows(narrow=True)["coupled-map"]
    rival = curves()["coupled-map"]["ni-gbms"]
    over = [rival[seed]["errors"][-1] / runs[seed][ALL_ROWS]["error"] for seed in rival if seed in runs]
    return values | {
        "perturbed.quartile.low": low,
        "perturbed.quartile.high": high,
        "wall.spread": max(ends) / min(ends),
        "wall.warned": sum(bool(curve["warned"]) for curve in wall["chosen"].values()),
        "coupled-map, ni-gbms, over tuned": median(over),
    }


def _methods(folder: str, mark: str) -> dict[str, float]:
    """Each method on each problem, a mean over seeds; and of two of them over all problems."""
    values = {}
    methods = {method for by_method in curves(folder).values() for method in by_method}
    for method in sorted(methods - {"first-order"}):
        for problem, ratios in over_first(method, folder).items():
            values[f"{mark}{problem}, {method}"] = fmean(ratios)
            if not mark and method in (*SUMMED, "first-order-perturbed"):
                seeds = [name for name in curves(folder)[problem][method]]
                values |= {
                    f"{mark}{problem}, {method}, seed {seed}": ratio
                    for seed, ratio in zip(seeds, ratios, strict=True)
                }
    for method in SUMMED:
        values |= summary(f"{mark}{method}", over_first(method, folder), fmean)
        for what in ("rows", "seconds"):
            costs = {name: spent(by_method, method, what) for name, by_method in curves(folder).items()}
            known = {name: cost for name, cost in costs.items() if cost is not None}
            values[f"{mark}{method}.{what}"] = median(known.values())
            if method == "chosen":
                values |= {f"{mark}{name}, {method}, {what}": cost for name, cost in known.items()}
    return values


def _alone() -> dict[str, float]:
    """The box with nothing corrected, over first order at its usual settings."""
    alone = read("tangents_uncorrected.json")["errors"]
    over = {}
    for name, error in alone.items():
        if firsts := curves().get(name, {}).get("first-order"):
            over[name] = [error / curve["errors"][-1] for curve in firsts.values()]
    values = {f"{name}, box alone": fmean(ratios) for name, ratios in over.items()}
    return values | summary("box alone", over, fmean)


def _long() -> dict[str, float]:
    """Kuramoto-Sivashinsky trained as long as published, and the seconds of it at usual length."""
    long = read("tangents/ks-26-8-paper.json")["curves"]
    values = {f"long, {method}": seeds["0"]["errors"][-1] for method, seeds in long.items()}
    own, first = long["chosen"]["0"], long["first-order"]["0"]
    values |= {
        "long.rows": own["rows"][-1] / first["rows"][-1],
        "long.seconds": own["seconds"] / first["seconds"],
    }
    for method in ("first-order", "chosen"):
        values[f"ks.seconds, {method}"] = fmean(c["seconds"] for c in curves()["ks-26-8"][method].values())
    return values
