"""The wake flow's own part of a report: what came out in words, wakes, errors, physics, the publication."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tasks.report.html_report import Block, Figure, Heading, Paragraph
from tasks.runs.folder import Run
from tasks.runs.result import Result
from tasks.wake_flow import curves, pictures, published, tables
from tasks.wake_flow.config import Config, family_of
from tasks.wake_flow.evaluation import SOLVER, Evaluation

WHAT = {
    "SRC": "is the solver alone",
    "NON": "trains the network on pairs of frames, without the solver in the loop",
    "PRE": "trains it on corrections fitted beforehand",
    "PRE-SR": "does so with corrections fitted frame by frame",
    "FO-SOL": "trains it in the loop with the solver's own derivative",
    "ZO-SOL": "in the loop from function values alone, weight by weight or along random directions",
    "chain": "with the network's derivative, and the solver's from function values",
    "identity": "with the identity in place of the solver's derivative",
    "TAN-SOL": "with a model of the solver fitted to its values",
}  # what each does, in the order in which it is told


def blocks(run: Run, result: Result, config: Config, found: tables.Found) -> Sequence[Block]:
    """Draw the pictures of a finished run into its folder, and set them beside the tables.

    Args:
        run: Its folder.
        result: Of the run.
        config: Of the run.
        found: What was measured, by seed.
    """
    return (
        *map(Paragraph, sentences(result, config)),
        Paragraph(_how_it_was_measured(config)),
        *_wake(run, config, found[run.seeds[0]]),
        *_errors(run, config, found),
        *_physics(run, config, found),
        Heading("The published experiment"),
        published.paper_table(result, config),
        Paragraph("Every number that differs from the publication (Um et al. 2020), and why:"),
        published.differences_table(result, config),
    )


def sentences(result: Result, config: Config) -> list[str]:
    """What came out, in sentences that follow the figures whatever they are."""
    weights, means = tables.weights(result), tables.means(result)
    methods = list(weights)
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
            rows = fmean(row.rows for row in result.table if row.method == method)
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


def _how_it_was_measured(config: Config) -> str:
    low, high = min(config.train_reynolds), max(config.train_reynolds)
    # as in `evaluation.held_out`: those outside the range trained on count only if there are no others
    tested = [re for re in config.test_reynolds if low <= re <= high] or config.test_reynolds
    start = (
        "their NON's weights, whose rows are not added"
        if config.start == "NON"
        else "the seed's first weights"
    )
    return (
        f"Held-out Re {', '.join(f'{re:g}' for re in tested)}; MAE of the velocity in units of the inflow's "
        f"speed U, over {config.horizon} steps. Methods in the loop start from {start}."
    )


def _wake(run: Run, config: Config, first: Evaluation) -> Sequence[Block]:
    shown = ", ".join(method for method in pictures.SHOWN if method in first.tracks)
    flow = f"Re {first.shown_reynolds:g}, never trained on"
    return (
        Heading("The wake"),
        Figure(
            pictures.animated(first, config, run.path / "wakes.webp"),
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


def _errors(run: Run, config: Config, found: tables.Found) -> Sequence[Block]:
    several = len(found) > 1
    lost = tables.lost(found)
    return (
        Heading("Errors"),
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


def _physics(run: Run, config: Config, found: tables.Found) -> Sequence[Block]:
    return (
        Heading("The flow itself"),
        tables.physics(found, config),
        tables.forces(found, config),
        Figure(
            curves.physics(found[run.seeds[0]], config, run.path / "physics.png"),
            alt="Divergence and kinetic energy over time, by method",
            caption=(
                f"Seed {run.seeds[0]}, the mean over held-out rollouts. The reference's divergence is in the "
                "coarse cells that its cylinder cuts. The "
                "networks are not asked to keep the velocity free of it; the solver's next step takes it out."
            ),
        ),
    )
