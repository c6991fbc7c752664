"""The tables of the flow itself, from the result and the evaluations of all seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

import numpy as np

from tasks.report import html_report
from tasks.report.findings import scores
from tasks.runs.result import Result
from tasks.wake_flow.config import Config
from tasks.wake_flow.curves import by_reynolds
from tasks.wake_flow.diagnostics import LIMIT, WAKE
from tasks.wake_flow.evaluation import REFERENCE, SOLVER, Evaluation, rms

Found = Mapping[int, Evaluation]  # by seed


def reynolds(found: Found, config: Config) -> html_report.Table:
    """Error at each test Reynolds number."""
    first = next(iter(found.values()))
    numbers = by_reynolds(found, SOLVER)[0]
    low, high = min(config.train_reynolds), max(config.train_reynolds)
    outside = [not low <= number <= high for number in numbers]
    lines = [
        (method, *(_spread(seeds, ".4f") for seeds in by_reynolds(found, method)[1].T.tolist()))
        for method in first.methods
    ]
    starred = (
        " * outside the range trained on, and not in the mean of the first table." if any(outside) else ""
    )
    return html_report.Table(
        ("method", *(f"Re {n:g}{' *' if o else ''}" for n, o in zip(numbers, outside, strict=True))),
        lines,
        caption=f"MAE of the velocity (U) by Reynolds number; trained on {low:g} to {high:g}.{starred}",
    )


def physics(found: Found, config: Config) -> html_report.Table:
    """Wake error, divergence, energy and stability of each method."""
    first = next(iter(found.values()))
    rows = first.held_out

    def over(series: str, form: str, reduce: Callable[..., float] = np.mean, unit: float = 1.0) -> str:
        values = [float(reduce(getattr(each.tracks[method], series)[rows])) for each in found.values()]
        return _spread([value / unit for value in values], form)

    lines = []
    for method in (REFERENCE, *first.methods):
        steps = [float(each.stability(method)[rows].mean()) for each in found.values()]
        lines.append(
            (
                method,
                "-" if method == REFERENCE else over("wake_error", ".4f"),
                over("divergence_mean", ".2g", unit=1e-3),  # few digits, or the table is too wide
                over("divergence_max", ".2g", np.max, unit=1e-3),
                over("energy", ".4f"),
                "-" if method in (REFERENCE, SOLVER) else _spread(steps, ".0f"),
            )
        )
    (left, right), (near, far) = WAKE
    return html_report.Table(
        ("method", "wake MAE (U)", "mean |div|", "max |div|", "energy (U²)", "stable steps"),
        lines,
        caption=(
            f"Held-out rollouts of {config.horizon} steps"
            + (", mean ± standard deviation of the seeds" if len(found) > 1 else "")
            + f". The wake is the window {near:g} to {far:g} D behind the cylinder's centre and "
            f"{right - left:g} D wide. Divergence, in thousandths of U/D, is of the cells outside the "
            "cylinder; its largest value is of all of them, steps and rollouts. Stable steps: until the "
            "error passes that of SRC at the same step, the mean over rollouts."
        ),
    )


def forces(found: Found, config: Config) -> html_report.Table:
    """Drag and lift of each method."""
    first = next(iter(found.values()))
    rows, several = first.held_out, len(found) > 1
    lines = []
    for method in (REFERENCE, *first.methods):
        tracks = [each.tracks[method] for each in found.values()]
        errors = [float(each.drag_error(method)[rows].mean()) for each in found.values()]
        lines.append(
            (
                method,
                _spread([float(track.drag[rows].mean()) for track in tracks], ".3f"),
                "-" if method == REFERENCE else _spread(errors, ".3f"),
                _spread([rms(track.lift[rows]) for track in tracks], ".3f"),
            )
        )
    return html_report.Table(
        ("method", "C_D", "C_D error", "C_L rms"),
        lines,
        caption=(
            "Force on the cylinder over U² D / 2, from the balance of momentum in a window a half diameter "
            "around it, from velocities alone: the same for all, the reference on the coarse grid. Held-out "
            f"rollouts of {config.horizon} steps"
            + (", mean ± standard deviation of the seeds" if several else "")
            + ". C_D is the mean drag coefficient; its error the mean of |C_D - the reference's at the same "
            "step|; C_L is the lift coefficient. What else changes momentum in the window counts as force: a "
            "network's corrections, and the diffusion of the coarse solver's scheme (SRC reads some 9 % "
            "above what its solver takes out at the cylinder, on 32 x 64)."
        ),
    )


def lost(found: Found) -> html_report.Table | None:
    """Every rollout that blew up; None if none did."""
    lines = [
        (
            each.method,
            seed,
            f"{each.reynolds:g}",
            each.row,
            each.step,
        )
        for seed, evaluation in found.items()
        for each in evaluation.lost()
    ]
    if not lines:
        return None
    return html_report.Table(
        ("method", "seed", "Re", "row", "step"),
        lines,
        caption=(
            f"Rollouts that blew up: no number, or a mean error above {LIMIT:g} U, at that step. None of "
            "them is in a mean: figures that would need one are left out."
        ),
    )


def weights(result: Result) -> dict[str, int]:
    """How many each method's network has; 0 for SRC."""
    return {row.method: int(row.extra.get("weights") or 0) for row in result.table}


def means(result: Result) -> dict[str, float]:
    """The seeds' mean error by method, in the order of the result; none where a seed has no finite one."""
    return {score.method: score.mean for score in scores(result) if math.isfinite(score.mean)}


def _spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation over seeds, or what all agree on; a dash where a seed has none."""
    if not np.isfinite(values).all():
        return "-"
    if len(set(values)) == 1:
        return f"{values[0]:{form}}"
    return f"{fmean(values):{form}} ± {stdev(values):{form}}"
