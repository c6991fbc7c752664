"""The wake-flow report: the page that holds the tables and the pictures, and the table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.report import html_report
from tasks.report.html_report import Details, Facts, Figure, Heading, Paragraph
from tasks.runs.folder import Run
from tasks.runs.result import Result
from tasks.wake_flow import (
    animation,
    curves,
    evaluation,
    lead,
    pictures,
    published,
    tables,
    training_curves,
)
from tasks.wake_flow.config import Config
from tasks.wake_flow.findings import Evaluation
from tasks.wake_flow.task import evaluation_name


def write_report(run: Run) -> Path:
    """Draw the pictures of a finished run and write `report.html` beside them."""
    result, config = Result.read(run.path), run.configuration(Config)
    found = {seed: evaluation.read(run.path / evaluation_name(seed)) for seed in run.seeds}
    page = html_report.Page(
        title="Wake flow: a network corrects a coarse solver",
        lead=lead.sentences(result, config),
        blocks=(
            Facts(lead.facts(result)),
            html_report.Table(
                tables.HEADERS, tables.results(result), caption=_table_caption(run, result, config)
            ),
            *_wake(run, config, found[run.seeds[0]]),
            *_errors(run, config, found),
            *_physics(run, config, found),
            *_training(run, result, config),
            Heading("The published experiment"),
            published.paper_table(result, config),
            Paragraph("Every number that differs from the publication (Um et al. 2020), and why:"),
            published.differences_table(result, config),
            Heading("The run"),
            Details("Settings", run.config),
            Details("Machine", {**result.machine, **result.versions}),
        ),
        footer=f"{' '.join(result.command)} · started {result.started}, finished {result.finished}",
    )
    return html_report.write(run.path / "report.html", page)


def summary(run: Run) -> Any:  # noqa: ANN401 - a rich renderable
    """The table, for the terminal."""
    from rich.table import Table

    result, config = Result.read(run.path), run.configuration(Config)
    table = Table(caption=_table_caption(run, result, config), caption_justify="left")
    for header in tables.HEADERS:
        table.add_column(header, justify="left" if header == "method" else "right")
    for line in tables.results(result):
        table.add_row(*line)
    return table


def _wake(run: Run, config: Config, first: Evaluation) -> Sequence[html_report.Block]:
    shown = ", ".join(method for method in pictures.SHOWN if method in first.tracks)
    flow = f"Re {first.shown_reynolds:g}, never trained on"
    return (
        Heading("The wake"),
        Figure(
            animation.wakes(first, config, run.path / "wakes.webp"),
            alt=f"Animation of the vorticity behind the cylinder: the reference beside {shown}",
            caption=(
                f"Vorticity at {flow}, flow from left to right, all from one frame of the reference; "
                f"{config.horizon} steps. Red turns anticlockwise, blue clockwise."
            ),
            wide=False,
        ),
        Figure(
            pictures.wakes(first, config, run.path / "vorticity.png"),
            alt=f"Vorticity behind the cylinder at several times, for the reference and {shown}",
            caption=(
                "The same at times since the common start, D the diameter, U the inflow's speed. "
                "The reference is shown on the coarse grid."
            ),
        ),
    )


def _errors(run: Run, config: Config, found: tables.Found) -> Sequence[html_report.Block]:
    several = len(found) > 1
    lost = tables.lost(found)
    return (
        Heading("Errors"),
        Figure(
            curves.bars(found, run.path / "mae_by_method.png"),
            alt="Bars of the mean absolute error of each method, in the whole channel and in the wake",
            caption=(
                "Mean absolute error over the held-out rollouts: in the whole channel, and paler in the wake"
                + ("; points are seeds, the line is what they span." if several else ".")
            ),
        ),
        Figure(
            curves.errors(found, config, run.path / "mae_over_time.png"),
            alt="Mean absolute error of the velocity against time and against the Reynolds number by method",
            caption=(
                "Above: error over time, the mean over held-out Reynolds numbers, starts, components and "
                f"cells; training saw windows of {config.unroll} steps (dotted line). Below: the mean over "
                "time at each Reynolds number; dashed lines, where there are any, are the ends of the range "
                "trained on. A curve ends where a rollout blew up."
                + (" Bands are from the lowest to the highest seed." if several else "")
            ),
        ),
        tables.reynolds(found, config),
        Figure(
            pictures.error_maps(found, config, run.path / "error_maps.png"),
            alt="Maps of the mean absolute error in the channel, one for each method",
            caption=(
                "Where each method errs: the mean over held-out rollouts"
                + (", seeds" if several else "")
                + " and all steps."
            ),
        ),
        *([lost] if lost else [Paragraph("No rollout blew up.")]),
    )


def _physics(run: Run, config: Config, found: tables.Found) -> Sequence[html_report.Block]:
    return (
        Heading("The flow itself"),
        tables.physics(found, config),
        tables.forces(found, config),
        tables.strouhal(found, config),
        Figure(
            curves.physics(found[run.seeds[0]], config, run.path / "physics.png"),
            alt="Divergence and kinetic energy over time, and the spectrum of the velocity in the wake",
            caption=(
                f"Seed {run.seeds[0]}. Above and middle: the mean over held-out rollouts. Below: the "
                "spectrum of the velocity across the stream behind the cylinder, "
                f"Re {found[run.seeds[0]].shown_reynolds:g}; records differ in length, and a shorter one has "
                "wider peaks. The reference's divergence is in the coarse cells that its cylinder cuts. The "
                "networks are not asked to keep the velocity free of it; the solver's next step takes it out."
            ),
        ),
    )


def _training(run: Run, result: Result, config: Config) -> Sequence[html_report.Block]:
    methods, seed = tables.methods(result), run.seeds[0]
    start = (
        "methods in the loop start from their NON's weights, whose rows are not added"
        if config.start == "NON"
        else "every method starts from the seed's first weights"
    )
    blocks: list[html_report.Block] = [
        Heading("Training"),
        Figure(
            training_curves.training(run, methods, run.path / "training.png"),
            alt="Validation error and loss of each method against the solver rows of its training",
            caption=(
                f"Against the solver rows trained on; {start}, and one with the solver's derivative takes it "
                "for each row too. "
                "Above: error on validation flows. Below: loss of the methods in the loop, a running mean."
                + (" Means of the seeds, and the band that they span." if len(run.seeds) > 1 else "")
            ),
        ),
    ]
    if {"ZO-SOL", "TAN-SOL"} & set(methods):
        blocks.append(
            Figure(
                training_curves.estimates(run, run.path / "estimates.png"),
                alt="Validation error of ZO-SOL against its queries, and the trust in TAN-SOL's tangent",
                caption=(
                    f"Seed {seed}. Above: ZO-SOL against its queries; levels are the best of the "
                    "methods with the same network that need none. Below: TAN-SOL's relative error in "
                    "predicting the solver's responses to probes before it learns from them, and, every few "
                    "steps, the loss's measured slope along the gradient over the gradient's length, 1 where "
                    "the tangent is right."
                ),
            )
        )
    return blocks


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
    low, high = min(config.train_reynolds), max(config.train_reynolds)
    # as in `findings.held_out`: those outside the range trained on count only if there are no others
    tested = [re for re in config.test_reynolds if low <= re <= high] or config.test_reynolds
    return (
        f"Held-out Re {', '.join(f'{re:g}' for re in tested)}; MAE of the velocity in units of "
        f"the inflow's speed U, over {config.horizon} steps"
        + (f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ", one seed")
        + f". Rows, queries and seconds are those of training; TAN-SOL's queries are its probes. "
        f"NON's budget of {config.non_steps} steps ({config.large_non_steps} with the larger network) is "
        "fixed; of every method the weights with the lowest validation error count (last column). "
        + _failures(result)
    )
