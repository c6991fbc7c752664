"""The wake flow's own part of a report: the outcome in words, wakes, errors, the flow's own figures."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from statistics import fmean

import numpy as np

from tasks.applications.wake_flow import curves, flow_pictures
from tasks.applications.wake_flow.config import Config, family_of, without_budget
from tasks.applications.wake_flow.curves import BySeed, by_reynolds
from tasks.applications.wake_flow.diagnostics import LIMIT, WAKE
from tasks.applications.wake_flow.evaluation import (
    REFERENCE,
    SOLVER,
    Arrays,
    Tracks,
    held_out,
    lost,
    methods,
    rms,
    shown_reynolds,
)
from tasks.applications.wake_flow.methods import METHODS
from tasks.folder.result import Result
from tasks.folder.run import Run
from tasks.methods import by_name
from tasks.report.html_report import Block, Figure, Heading, Paragraph, Table
from tasks.report.method_scores import scores, with_spread


def blocks(run: Run, result: Result, config: Config, by_seed: BySeed) -> Sequence[Block]:
    """Draw the pictures of a finished run into its folder, and set them beside the tables.

    Args:
        run: Its folder.
        result: The result of the run.
        config: The run's settings.
        by_seed: The measurements by seed; at least one.
    """
    first = next(iter(by_seed.values()))
    return (
        *map(Paragraph, sentences(result, config)),
        Paragraph(_how_it_was_measured(config, first[REFERENCE])),
        *_wake(run, config, first),
        *_errors(run, config, by_seed),
        *_physics(first),
    )


def sentences(result: Result, config: Config) -> list[str]:
    """Describe the comparison, and how the methods that need no derivative stand to first order."""
    methods, means = {**by_name.METHODS, **METHODS}, {score.method: score.mean for score in scores(result)}
    families: dict[str, str] = {}
    for method in means:
        about = methods[without_budget(method)].about.removesuffix(" The large network.")
        families.setdefault(family_of(method)[0], about)
    lines = [
        f"A network corrects a {config.width} x {2 * config.width} solver after every step. "
        + " ".join(f"{family}: {about[0].lower()}{about[1:]}" for family, about in families.items())
    ]
    for method, mean in means.items():
        family, large = family_of(method)
        rivals = [name for name in means if family_of(name) == ("FO-SOL", large) and isfinite(means[name])]
        share = mean / means.get(SOLVER, nan)
        if family in ("ZO-SOL", "TAN-SOL") and rivals and isfinite(share):
            ratios = [
                f"{mean / means[name]:.2f} times that of {name}, for {_rows(result, name):,.0f}"
                for name in rivals
            ]
            lines.append(
                f"{method}'s error is {share:.0%} of the solver's own, for {_rows(result, method):,.0f} "
                f"solver rows: {'; '.join(ratios)}."
            )
    return lines


def _rows(result: Result, method: str) -> float:
    return fmean(row.rows for row in result.table if row.method == method)


def _how_it_was_measured(config: Config, reference: Arrays) -> str:
    tested = np.unique(reference["reynolds"][held_out(reference["extrapolated"])])
    start = (
        "their NON's weights, whose rows are not added"
        if config.start == "NON"
        else "the seed's first weights"
    )
    return (
        f"Held-out Re {', '.join(f'{re:g}' for re in tested)}; MAE of the velocity in units of the inflow's "
        f"speed U, over {config.horizon} steps. Methods in the loop start from {start}."
    )


def _wake(run: Run, config: Config, first: Tracks) -> Sequence[Block]:
    names = flow_pictures.shown(first)
    name_list = ", ".join(names)
    flow = f"Re {shown_reynolds(first):g}, never trained on"
    return (
        Heading("The wake"),
        Figure(
            flow_pictures.animated(first, config, run.path / "wakes.webp"),
            alt=f"Animation of the vorticity behind the cylinder: the reference beside {name_list}",
            caption=(
                f"Vorticity at {flow}, flow from left to right, all from one frame of the reference; "
                f"{config.horizon} steps. Red turns anticlockwise, blue clockwise."
            ),
            wide=False,
        ),
        Figure(
            flow_pictures.wakes(first, config, run.path / "vorticity.png", names),
            alt=f"Vorticity behind the cylinder at several times, for the reference and {name_list}",
            caption=(
                "The same at times since the common start, D the diameter, U the inflow's speed. "
                "The reference is shown on the coarse grid."
            ),
        ),
    )


def _errors(run: Run, config: Config, by_seed: BySeed) -> Sequence[Block]:
    several = len(by_seed) > 1
    blown_up = _lost(by_seed)
    return (
        Heading("Errors"),
        Figure(
            curves.errors(by_seed, config, run.path / "mae_over_time.png"),
            alt="Mean absolute error of the velocity against time and against the Reynolds number by method",
            caption=(
                "Above: error over time, the mean over held-out Reynolds numbers, starts, components and "
                f"cells; training saw windows of {config.unroll} steps (dotted line). Below: the mean over "
                "time at each Reynolds number; dashed lines, where there are any, are the ends of the range "
                "trained on. A curve ends where a rollout blew up."
                + (" Bands are from the lowest to the highest seed." if several else "")
            ),
        ),
        _reynolds(by_seed, config),
        Figure(
            flow_pictures.error_maps(by_seed, run.path / "error_maps.png"),
            alt="Maps of the mean absolute error in the channel, one for each method",
            caption=(
                "Where each method errs: the mean over held-out rollouts"
                + (", seeds" if several else "")
                + " and all steps."
            ),
        ),
        *([blown_up] if blown_up else [Paragraph("No rollout blew up.")]),
    )


def _reynolds(by_seed: BySeed, config: Config) -> Block:
    """Error at each test Reynolds number."""
    first = next(iter(by_seed.values()))
    numbers = by_reynolds(by_seed, SOLVER)[0]
    low, high = min(config.train_reynolds), max(config.train_reynolds)
    outside = [not low <= number <= high for number in numbers]
    lines = [
        (method, *(with_spread(seeds) for seeds in by_reynolds(by_seed, method)[1].T.tolist()))
        for method in methods(first)
    ]
    starred = (
        " * outside the range trained on, and not in the mean of the first table." if any(outside) else ""
    )
    return Table(
        ("method", *(f"Re {n:g}{' *' if o else ''}" for n, o in zip(numbers, outside, strict=True))),
        lines,
        caption=f"MAE of the velocity (U) by Reynolds number; trained on {low:g} to {high:g}.{starred}",
    )


def _lost(by_seed: BySeed) -> Block | None:
    """Every rollout that blew up; None if none did."""
    lines = [
        (method, seed, f"{reynolds:g}", row, step)
        for seed, tracks in by_seed.items()
        for method, reynolds, row, step in lost(tracks)
    ]
    if not lines:
        return None
    return Table(
        ("method", "seed", "Re", "row", "step"),
        lines,
        caption=(
            f"Rollouts that blew up: no number, or a mean error above {LIMIT:g} U, at that step. None of "
            "them is in a mean: figures that would need one are left out."
        ),
    )


def _physics(first: Tracks) -> Sequence[Block]:
    track = first[REFERENCE]
    rows = held_out(track["extrapolated"])
    drag, lift = track["drag"][rows].mean(), rms(track["lift"][rows])
    (left, right), (near, far) = WAKE
    return (
        Heading("The flow itself"),
        Paragraph(
            f"The further figures above are of held-out rollouts. The wake is the window {near:g} to {far:g} "
            f"D behind the cylinder's centre and {right - left:g} D wide. Divergence (U / D) is of the cells "
            "outside the cylinder, energy in U². Stable steps: until the error passes that of SRC at the "
            "same step. Drag and lift are over U² D / 2, from the balance of momentum in a window a half "
            "diameter around the cylinder, from velocities alone, with what corrections and the coarse "
            "scheme's diffusion add (SRC reads some 9 % above what its solver takes out, on 32 x 64); of the "
            f"reference, on the coarse grid, they are {drag:.3f} (mean drag) and {lift:.3f} (rms lift)."
        ),
    )
