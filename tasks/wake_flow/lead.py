"""What came out, in sentences and a few figures that follow the result whatever it is."""

from __future__ import annotations

from statistics import fmean

from tasks.runs.result import Result
from tasks.wake_flow import tables
from tasks.wake_flow.config import Config
from tasks.wake_flow.findings import SOLVER
from tasks.wake_flow.limits import family_of

WHAT = {
    "SRC": "is the solver alone",
    "NON": "trains the network on pairs of frames, without the solver in the loop",
    "PRE": "trains it on corrections fitted beforehand",
    "PRE-SR": "does so with corrections fitted frame by frame",
    "FO-SOL": "trains it in the loop with the solver's own derivative",
    "ZO-SOL": "in the loop from function values alone, weight by weight or along random directions",
    "chain": "with the network's derivative, and the solver's from function values",
    "identity": "with the identity in place of the solver's derivative",
    "TAN-SOL": "with a tangent of the solver learned from probes",
}  # what each does, in the order in which the lead tells it


def facts(result: Result) -> list[tuple[str, str]]:
    """The few figures that a reader takes away, and what they are."""
    facts = []
    for method in (SOLVER, "FO-SOL", "ZO-SOL", "TAN-SOL"):
        if tables.rows_of(result, method):
            mean = tables.mean(result, method)
            facts.append(("blew up" if mean is None else f"{mean:.3f} U", f"MAE of {method}"))
    zo = tables.rows_of(result, "ZO-SOL")
    if zo:
        speed = sum(row.queries for row in zo) / max(1e-9, sum(row.seconds for row in zo))
        facts.append((f"{speed:,.0f}", "queries per second of ZO-SOL"))
    return facts


def sentences(result: Result, config: Config) -> list[str]:
    """What came out, in sentences that follow the figures whatever they are."""
    methods, weights = tables.methods(result), tables.weights(result)
    means = {m: value for m in methods if (value := tables.mean(result, m)) is not None}
    families = dict.fromkeys(family_of(method)[0] for method in methods)
    told = [
        f"A network corrects a {config.width} x {2 * config.width} solver after every step. "
        + "; ".join(f"{family} {WHAT[family]}" for family in families)
        + "."
    ]
    sizes = {large: next((weights[m] for m in methods if _size(m, large)), 0) for large in (False, True)}
    if sizes[True]:
        large = "Large, and TAN-SOL," if "TAN-SOL" in methods else "Large"
        told[0] += f" {large} means {sizes[True]:,} weights"
        told[0] += f" instead of {sizes[False]:,}." if sizes[False] else "."
    if means:
        order = " < ".join(sorted(means, key=lambda method: means[method]))
        told.append(f"Mean absolute error on Reynolds numbers never trained on: {order}.")
    for method, first_order in (("ZO-SOL", "FO-SOL"), ("TAN-SOL", "FO-SOL large")):
        if {method, first_order, SOLVER} <= means.keys():
            rows = fmean(row.rows for row in tables.rows_of(result, method))
            told.append(
                f"{method}'s error is {means[method] / means[SOLVER]:.0%} of the solver's own and "
                f"{means[method] / means[first_order]:.2f} times that of first order with the same network, "
                f"for {rows:,.0f} solver rows."
            )
    failed = [method for method in methods if method not in means]
    if failed:
        told.append(f"Rollouts blew up for {', '.join(failed)}: no mean is given where one did.")
    return told


def _size(method: str, large: bool) -> bool:
    """Whether a method trains the network of that size."""
    return method != SOLVER and family_of(method)[1] == large
