"""What came out of a run as a table and as sentences that follow the figures whatever they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev

from tasks.image_classification import limits
from tasks.image_classification.config import Config
from tasks.runs.result import Result, Row

HEADERS = ("method", "accuracy (%)", "of fo's", "queries", "images", "seconds", "step chosen")


def methods(result: Result) -> list[str]:
    """In the order of the configuration."""
    return list(dict.fromkeys(row.method for row in result.table))


def rows_of(result: Result, method: str) -> list[Row]:
    """One for each seed."""
    return [row for row in result.table if row.method == method]


def mean(result: Result, method: str) -> float | None:
    """Of the seeds' test accuracies, 0 to 1; None where one has none."""
    values = [row.value for row in rows_of(result, method)]
    if not values or any(value is None for value in values):
        return None
    return fmean(value for value in values if value is not None)


def results(result: Result) -> list[tuple[str, ...]]:
    """Under `HEADERS`: what came out and what it cost, means over the seeds."""
    first = mean(result, "fo")
    lines = []
    for method in methods(result):
        rows, own = rows_of(result, method), mean(result, method)
        queries, seconds = fmean(row.queries for row in rows), fmean(row.seconds for row in rows)
        chosen = dict.fromkeys(f"{row.extra['chosen step']}" for row in rows)
        lines.append(
            (
                method,
                _accuracy(rows),
                "-" if own is None or not first else f"{own / first:.2f}",
                f"{queries:,.0f}",
                f"{fmean(row.rows for row in rows):,.0f}",
                f"{seconds:.1f}",
                f"{', '.join(chosen)} of {rows[0].extra['steps']}",
            )
        )
    return lines


def facts(result: Result) -> list[tuple[str, str]]:
    """The few figures that a reader takes away, and what they are."""
    told = []
    for method in ("deepzero", "fo-sparse-gradient", "fo"):
        own = mean(result, method)
        if own is not None:
            told.append((f"{100 * own:.1f} %", f"test accuracy of {method}"))
    rows = [row for row in result.table if row.method == "deepzero"]
    if rows:
        speed = sum(row.queries for row in rows) / max(1e-9, sum(row.seconds for row in rows))
        told.append((f"{speed:,.0f}", "queries per second of deepzero"))
    return told


def sentences(result: Result, config: Config) -> list[str]:
    """What came out."""
    parameters = result.table[0].extra["parameters"]
    told = [
        f"{config.network} with {parameters:,} parameters, trained from scratch on {config.dataset}: "
        f"{config.epochs} epochs of batches of {config.batch}."
    ]
    means = {m: own for m in methods(result) if (own := mean(result, m)) is not None}
    if means:
        told.append(f"Accuracy on test images: {_order(means)}.")
    if {"deepzero", "fo-sparse-gradient"} <= means.keys():
        share = means["deepzero"] / means["fo-sparse-gradient"]
        told.append(
            "From function values alone, deepzero comes to "
            f"{share:.2f} of the accuracy that exact gradients on the same sets give."
        )
    if {"deepzero", "rge"} <= means.keys():
        told.append(
            f"With {_queries(result, 'deepzero')} queries deepzero classifies {means['deepzero']:.1%}, "
            f"random directions with {_queries(result, 'rge')} {means['rge']:.1%} rightly."
        )
    lost = [method for method in methods(result) if method not in means]
    if lost:
        told.append(f"The logits of {', '.join(lost)} are not finite: no accuracy is given.")
    return told


def caption(result: Result, config: Config) -> str:
    """What the table's numbers are of."""
    seeds = len(result.seeds)
    dropped = sum(int(row.extra.get("dropped queries") or 0) for row in result.table)
    querying = [method for method in methods(result) if method in limits.QUERYING]
    return (
        "Accuracy on the test images, of the weights with the highest validation accuracy"
        + (f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ", one seed")
        + ". Queries are perturbed losses; those of the layer ratios are charged to each method that uses "
        "them. Images are those that went forward through the network in training; seconds are those of the "
        "optimiser steps." + (f" {dropped:,} queries failed." if querying else "")
    )


def _order(means: dict[str, float]) -> str:
    """Methods from the most to the least accurate; "=" where the table shows the same number."""
    ranked = sorted(means, key=lambda method: -means[method])
    said = ranked[0]
    for before, method in pairwise(ranked):
        same = f"{100 * means[before]:.1f}" == f"{100 * means[method]:.1f}"
        said += f" {'=' if same else '>'} {method}"
    return said


def _queries(result: Result, method: str) -> str:
    return f"{fmean(row.queries for row in rows_of(result, method)):,.0f}"


def _accuracy(rows: Sequence[Row]) -> str:
    values = [100 * row.value for row in rows if row.value is not None]
    if len(values) < len(rows):
        return "not finite"
    return f"{values[0]:.1f}" if len(values) == 1 else f"{fmean(values):.1f} ± {stdev(values):.1f}"
