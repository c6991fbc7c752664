"""The wake-flow pictures: vorticity side by side, error over time, training curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from simulators.wake_flow.geometry import CENTRE, LENGTHS, RADIUS
from tasks import pictures
from tasks.runs.folder import Run
from tasks.wake_flow.config import METHODS, Config
from tasks.wake_flow.evaluation import Evaluation

DIAMETER = 2 * RADIUS
STAGES = {method: method.lower().replace(" ", "-") for method in METHODS if method != "SRC"}
SHOWN = ("SRC", "NON", "FO-SOL", "ZO-SOL", "TAN-SOL")  # of the wakes, not to make the picture too long


def vorticity(velocity: np.ndarray, cell: float) -> np.ndarray:
    """The curl at the corners between cells.

    Args:
        velocity: `(..., 2, height, width)`, x on left faces, y (along the stream) on upper faces.
        cell: side of a cell.

    Returns:
        `(..., height - 1, width - 1)`, dv/dx - du/dy, per unit of time.
    """
    across, along = velocity[..., 0, :, :], velocity[..., 1, :, :]
    # A corner has u on the faces below and above it, v on those left and right of it.
    return (np.diff(along, axis=-1)[..., :-1, :] - np.diff(across, axis=-2)[..., :, 1:]) / cell


def turned(field: np.ndarray) -> np.ndarray:
    """A field `(height, width)` as a picture, first row on top, with the stream from left to right.

    A quarter turn, no reflection: that would change the sign of vorticity.
    """
    return field.T


def wakes(found: Evaluation, config: Config, path: Path) -> Path:
    """Vorticity of the reference and of each method (rows) at several times (columns)."""
    cell = LENGTHS[0] / config.width
    shown = {name: vorticity(found.fields[name], cell) * DIAMETER for name in ("reference", *SHOWN)}
    limit = float(np.nanquantile(np.abs(shown["reference"]), 0.995))
    made, axes = pictures.figure(9.6, 6.6, rows=len(shown), columns=len(found.times))
    # corners are half a cell inside what they stand for
    length, width, half = LENGTHS[1] / DIAMETER, LENGTHS[0] / DIAMETER, cell / 2 / DIAMETER
    image = None
    for line, (name, field) in zip(axes, shown.items(), strict=True):
        for place, time, values in zip(line, found.times, field, strict=True):
            pictures.image_axes(place)
            image = place.imshow(
                turned(values), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="bilinear",
                extent=(half, length - half, half, width - half),
            )  # fmt: skip
            place.set(xlim=(0, length), ylim=(0, width))
            place.add_patch(Circle((CENTRE[1] / DIAMETER, CENTRE[0] / DIAMETER), 0.5, color="#555555"))
            if name == "reference":
                place.set_title(f"{time * config.dt / DIAMETER:g} D / U (step {time})")
        line[0].set_ylabel(name, color=pictures.colour(name), fontweight="bold")
    assert image is not None
    bar = made.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.01, extend="both")
    bar.set_label("vorticity (U / D)")
    return pictures.save(made, path)


def errors(found: Mapping[int, Evaluation], config: Config, path: Path) -> Path:
    """Error over time by method: the mean over seeds, and the band that seeds span."""
    made, axes = pictures.figure(7.2, 4.0)
    place = axes[0, 0]
    curves = {}
    times = np.arange(1, config.horizon + 1) * config.dt / DIAMETER
    for method in METHODS:
        seeds = np.array([evaluation.errors[method].mean(axis=0) for evaluation in found.values()])
        curves[method] = (times, seeds.mean(axis=0))
        if len(seeds) > 1:
            place.fill_between(
                times, seeds.min(axis=0), seeds.max(axis=0), color=pictures.colour(method), alpha=0.15, lw=0
            )
    pictures.against(place, curves, x="time (D / U)", y="MAE of velocity", unit="U")
    place.axvline(config.unroll * config.dt / DIAMETER, color="#999999", linestyle=":", linewidth=1)
    place.set_ylim(bottom=0)
    return pictures.save(made, path)


def training(run: Run, path: Path) -> Path:
    """Validation error against queries (ZO-SOL) and solver rows (all), and TAN-SOL's trust; first seed."""
    seed = run.seeds[0]
    by_rows, by_queries, levels = {}, {}, {}
    for method, stage in STAGES.items():
        rows, queries, values = _validation_curve(run, f"seed-{seed}/{stage}")
        by_rows[method] = (rows, values)
        if method == "ZO-SOL":
            by_queries[method] = (queries, values)
        elif method in ("NON", "FO-SOL"):
            levels[method] = float(np.nanmin(values))
    made, axes = pictures.figure(12.6, 3.8, columns=3)
    pictures.against(axes[0, 0], by_queries, levels=levels, y="validation MAE", unit="U")
    pictures.against(
        axes[0, 1], by_rows, x="solver rows in training", y="validation MAE", unit="U", log_x=True
    )
    _trust(axes[0, 2], run, f"seed-{seed}/{STAGES['TAN-SOL']}")
    for place in axes.flat:
        place.set_ylim(bottom=0)
    return pictures.save(made, path)


def _trust(place: Axes, run: Run, stage: str) -> None:
    """How well the tangent predicted what it had not seen, by step, and the directional checks."""
    lines = list(enumerate(run.metrics(stage), start=1))
    colour = pictures.colour("TAN-SOL")
    for name, label, marker, line in (
        ("tangent_error", "relative error of predictions", "", "-"),
        ("tangent_agreement", "slope along the gradient over its length", "P", ""),
    ):
        points = [(step, found[name]) for step, found in lines if name in found]
        if points:
            steps, values = zip(*points, strict=True)
            place.plot(steps, values, label=label, color=colour, marker=marker, linestyle=line)
    place.set(xlabel="step of TAN-SOL", ylabel="trust in the tangent")
    place.legend(frameon=False)


def _validation_curve(run: Run, stage: str) -> tuple[list[float], list[float], list[float]]:
    """Rows, queries and validation error at each validation of a stage."""
    rows: list[float] = []
    queries: list[float] = []
    values: list[float] = []
    spent = {"rows": 0.0, "queries": 0.0}
    for line in run.metrics(stage):
        spent |= {name: line[name] for name in spent if name in line}
        if "validation" in line:
            rows.append(spent["rows"])
            queries.append(spent["queries"])
            values.append(line["validation"])
    return rows, queries, values
