"""The tables of the report, from the result and the certificates of all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from tasks.denoised_smoothing.certification.bound import RADII
from tasks.denoised_smoothing.certification.accuracy import Runs, lines
from tasks.denoised_smoothing.certification.table import read_certificates
from tasks.denoised_smoothing.limits import read
from tasks.denoised_smoothing.task import certificates_name
from tasks.denoised_smoothing.trainer import KINDS
from tasks.report import html_report
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row

HEADERS = (
    "method",
    "queries",
    *(f"r = {r:g}" for r in RADII),
    "ACR",
    "held out",
    "kept",
    "seconds",
)


def certificates(run: Run, methods: Sequence[str]) -> Runs:
    """The certificates of a run, by method and seed."""
    return {
        method: [read_certificates(run.path / certificates_name(seed, method)) for seed in run.seeds]
        for method in methods
    }


def methods(result: Result) -> list[str]:
    """Those that the result has, in its order, which is that of the configuration."""
    return list(dict.fromkeys(row.method for row in result.table))


def rows_of(result: Result, method: str) -> list[Row]:
    """One for each seed."""
    return [row for row in result.table if row.method == method]


def results(result: Result, runs: Runs) -> list[tuple[str, ...]]:
    """Under `HEADERS`: what came out and what it cost."""
    found = []
    for line in lines(runs):
        rows = rows_of(result, line.method)
        found.append(
            (
                line.method,
                f"{fmean(row.rows for row in rows):,.0f}",
                *(spread(line.accuracies[radius], ".1f") for radius in RADII),
                spread(line.radius, ".3f"),
                _validation(rows),
                _kept(rows),
                f"{fmean(row.seconds for row in rows):.1f}",
            )
        )
    return found


def queries(result: Result) -> html_report.Table:
    """What each method asked for, by what for."""
    found = []
    for method in methods(result):
        rows = rows_of(result, method)
        if not any(row.rows for row in rows):
            continue
        each = [fmean(int(row.extra.get(f"queries: {kind}") or 0) for row in rows) for kind in KINDS]
        certified = fmean(int(row.extra["queries of the certificates"] or 0) for row in rows)
        total = fmean(row.rows for row in rows)
        found.append((method, *(f"{count:,.0f}" for count in each), f"{total:,.0f}", f"{certified:,.0f}"))
    return html_report.Table(
        ("method", *KINDS, "total", "certificates"),
        found,
        caption=(
            "Queries by what for, the mean over seeds. The total is what a method trained alone would pay; "
            "mu and predictions on clean images are asked once and shared. Certificates cost all the same."
        ),
    )


def best_of_families(result: Result) -> dict[str, str]:
    """Of each family the variant with the best validation accuracy, which is asked of the box itself."""
    best: dict[str, tuple[float, str]] = {}
    for method in methods(result):
        values = [row.extra.get("validation accuracy") for row in rows_of(result, method)]
        merit = fmean(float(value) for value in values if value is not None) if any(values) else 0.0
        family = read(method).family
        if family not in best or merit > best[family][0]:
            best[family] = merit, method
    return {family: method for family, (_, method) in best.items()}


def spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation over seeds."""
    mean = format(fmean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {format(stdev(values), form)}"


def _validation(rows: Sequence[Row]) -> str:
    values = [row.extra["validation accuracy"] for row in rows]
    if any(value is None for value in values):
        return "-"
    return spread([100 * float(value) for value in values if value is not None], ".1f")


def _kept(rows: Sequence[Row]) -> str:
    """Which step's weights, of how many; "start" where none were better."""
    if not rows[0].extra["steps"]:
        return "-"
    chosen = ["start" if row.extra["start kept"] else f"{row.extra['chosen step']}" for row in rows]
    return f"{', '.join(dict.fromkeys(chosen))} of {rows[0].extra['steps']}"
