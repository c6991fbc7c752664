"""The wake-flow report: the table, the pictures, and the page that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tasks import html_report
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row
from tasks.wake_flow import evaluation, pictures
from tasks.wake_flow.config import METHODS, Config
from tasks.wake_flow.task import evaluation_name


def write_report(run: Run) -> Path:
    """Draw the pictures of a finished run and write `report.html` beside them."""
    result, config = Result.read(run.path), run.configuration(Config)
    found = {seed: evaluation.read(run.path / evaluation_name(seed)) for seed in run.seeds}
    first = found[run.seeds[0]]
    wake = pictures.wakes(first, config, run.path / "vorticity.png")
    errors = pictures.errors(found, config, run.path / "mae_over_time.png")
    curves = pictures.training(run, run.path / "training.png")
    page = html_report.Page(
        title="Wake flow: a network corrects a coarse solver",
        lead=_lead(result, config),
        blocks=(
            html_report.Facts(_facts(result)),
            html_report.Table(HEADERS, _lines(result), caption=_table_caption(run, result, config)),
            html_report.Heading("The wake"),
            html_report.Figure(
                wake,
                alt="Vorticity behind the cylinder at several times, for the reference and each method",
                caption=(
                    f"Vorticity at Re {first.shown_reynolds:g}, never trained on, flow from left to right; "
                    "columns are times since the common start, D the diameter, U the inflow's speed. "
                    "The reference is shown on the coarse grid."
                ),
            ),
            html_report.Heading("Error over time"),
            html_report.Figure(
                errors,
                alt="Mean absolute error of the velocity against time for each method",
                caption=(
                    "Mean over the held-out Reynolds numbers, starts, components and cells"
                    + ("; the band is from the lowest to the highest seed" if len(found) > 1 else "")
                    + ". Training saw windows of "
                    f"{config.unroll} steps (dotted line)."
                ),
            ),
            html_report.Heading("Training"),
            html_report.Figure(
                curves,
                alt="Validation error against queries and against solver rows, and the trust in the tangent",
                caption=(
                    f"Seed {run.seeds[0]}. Left: ZO-SOL against its queries; levels are the best of the "
                    "methods with the same network that need none. "
                    "Middle: all methods against the solver rows they trained on; the in-loop methods start "
                    "from their NON's weights and its rows are not added. FO-SOL also takes a derivative per "
                    "row. Right: TAN-SOL's relative error in predicting the solver's responses to probes "
                    "before it learns from them, and, every few steps, the loss's measured slope along the "
                    "gradient over the gradient's length, 1 where the tangent is right."
                ),
            ),
            html_report.Details("Settings", run.config),
            html_report.Details("Machine", {**result.machine, **result.versions}),
        ),
        footer=f"{' '.join(result.command)} · started {result.started}, finished {result.finished}",
    )
    return html_report.write(run.path / "report.html", page)


def summary(run: Run) -> Any:  # noqa: ANN401 - a rich renderable
    """The table, for the terminal."""
    from rich.table import Table

    result, config = Result.read(run.path), run.configuration(Config)
    table = Table(caption=_table_caption(run, result, config), caption_justify="left")
    for header in HEADERS:
        table.add_column(header, justify="left" if header == "method" else "right")
    for line in _lines(result):
        table.add_row(*line)
    return table


HEADERS = ("method", "MAE", "weights", "solver rows", "queries", "seconds", "steps, chosen")


def _rows(result: Result, method: str) -> list[Row]:
    return [row for row in result.table if row.method == method]


def _lines(result: Result) -> list[tuple[str, ...]]:
    lines = []
    for method in METHODS:
        rows = _rows(result, method)
        steps = ["-" if r.extra.get("steps") is None else f"{r.extra['chosen step']}" for r in rows]
        of = "" if rows[0].extra.get("steps") is None else f" of {rows[0].extra['steps']}"
        lines.append(
            (
                method,
                spread(rows),
                f"{rows[0].extra.get('weights', 0):,}",
                f"{fmean(row.rows for row in rows):,.0f}",
                f"{fmean(row.queries for row in rows):,.0f}",
                f"{fmean(row.seconds for row in rows):.1f}",
                ", ".join(dict.fromkeys(steps)) + of,
            )
        )
    return lines


def spread(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds; how many rollouts blew up, if some did."""
    values = [row.value for row in rows if row.value is not None]
    if len(values) < len(rows):
        lost = sum(int(row.extra["rollouts that blew up"] or 0) for row in rows)
        return f"blew up in {lost} of {sum(int(row.extra['rollouts'] or 0) for row in rows)} rollouts"
    return f"{values[0]:.4f}" if len(values) == 1 else f"{fmean(values):.4f} ± {stdev(values):.4f}"


def _failures(result: Result) -> str:
    """A sentence on what failed in training."""
    failed, dropped = (
        sum(int(row.extra.get(name) or 0) for row in result.table)
        for name in ("failed solver rows", "dropped queries")
    )
    if not failed:
        return "No solver row failed in training."
    return f"In training {failed:,} solver rows failed; {dropped:,} queries were dropped for it."


def _table_caption(run: Run, result: Result, config: Config) -> str:
    seeds = len(run.seeds)
    return (
        f"Held-out Re {', '.join(f'{re:g}' for re in config.test_reynolds)}; MAE of the velocity in units of "
        f"the inflow's speed U, over {config.horizon} steps"
        + (f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ", one seed")
        + f". Rows, queries and seconds are those of training; TAN-SOL's queries are its probes. "
        f"NON's budget of {config.non_steps} steps is "
        "fixed; of every method the weights with the lowest validation error count (last column). "
        + _failures(result)
    )


def _facts(result: Result) -> list[tuple[str, str]]:
    facts = [(spread(_rows(result, m)), f"MAE of {m}") for m in ("SRC", "FO-SOL", "ZO-SOL", "TAN-SOL")]
    zo = _rows(result, "ZO-SOL")
    speed = sum(row.queries for row in zo) / max(1e-9, sum(row.seconds for row in zo))
    return [*facts, (f"{speed:,.0f}", "queries per second of ZO-SOL")]


def _lead(result: Result, config: Config) -> list[str]:
    """What came out, in sentences that follow the figures whatever they are."""
    means: dict[str, float] = {}
    for method in METHODS:
        values = [row.value for row in _rows(result, method)]
        if all(value is not None for value in values):
            means[method] = fmean(value for value in values if value is not None)
    order = " < ".join(sorted(means, key=lambda method: means[method]))
    weights = {row.method: int(row.extra.get("weights") or 0) for row in result.table}
    sentences = [
        f"A network corrects a {config.width} x {2 * config.width} solver after every step. ZO-SOL trains "
        f"{weights['ZO-SOL']:,} weights through the solver from function values alone, by sparse CGE; "
        f"TAN-SOL {weights['TAN-SOL']:,}, with a tangent of the solver learned from probes. FO-SOL has the "
        "solver's derivative, NON no solver in the loop, SRC no network; large means TAN-SOL's network.",
    ]
    if means:
        sentences.append(f"Mean absolute error on Reynolds numbers never trained on: {order}.")
    for method, first_order in (("ZO-SOL", "FO-SOL"), ("TAN-SOL", "FO-SOL large")):
        if {method, first_order, "SRC"} <= means.keys():
            rows = fmean(row.rows for row in _rows(result, method))
            sentences.append(
                f"{method}'s error is {means[method] / means['SRC']:.0%} of the solver's own and "
                f"{means[method] / means[first_order]:.2f} times that of first order with the same network, "
                f"for {rows:,.0f} solver rows."
            )
    failed = [method for method in METHODS if method not in means]
    if failed:
        sentences.append(f"Rollouts blew up for {', '.join(failed)}: no mean is given where one did.")
    return sentences
