"""How methods are judged: rollouts over Reynolds numbers never trained on, measured as they go, and kept."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.geometry import Channel
from tasks.runs import atomic
from tasks.wake_flow import diagnostics
from tasks.wake_flow.config import Config
from tasks.wake_flow.data import WakeData
from tasks.wake_flow.diagnostics import Gauges
from tasks.wake_flow.networks import NoCorrector
from tasks.wake_flow.rollout import Solver, corrected_steps

REFERENCE, SOLVER = "reference", "SRC"
NUMBERS = ("times", "reynolds", "extrapolated")
ATTRIBUTES = ("shown_reynolds", "dt")
MOVING = 48  # times kept of one flow, for the animation, at most
# of the arrays that `to_fields` gives, those that are prefixed too; x is across the stream, y along it
_AXES = {
    "error_map": ("y", "x"),
    "moving": ("time", "component", "y", "x"),
}
SERIES = ("error", "wake_error", "divergence_mean", "divergence_max", "energy", "drag", "lift")

DIMENSIONS = {
    "times": ("time",),
    "reynolds": ("rollout",),
    "extrapolated": ("rollout",),
    **{
        prefix + name: axes
        for prefix in ("", f"{REFERENCE} ", f"{SOLVER} ")
        for name, axes in (_AXES | dict.fromkeys(SERIES, ("rollout", "step"))).items()
    },
}


@dataclass(frozen=True)
class Track:
    """What was measured of one method, or of the reference, in rollouts from test frames.

    A rollout that is lost (`diagnostics.lost`) is NaN from that step on in every series. Units are those
    of `diagnostics`.

    Attributes:
        error: `(rollouts, horizon)`, mean absolute error of the velocity.
        wake_error: `(rollouts, horizon)`, the same in the window `diagnostics.WAKE`.
        divergence_mean, divergence_max: `(rollouts, horizon)`, over the cells outside the cylinder.
        energy: `(rollouts, horizon)`, kinetic.
        drag, lift: `(rollouts, horizon)`, coefficients between a step and the one before, see
            `simulators.wake_flow.forces`.
        error_map: `(height, width)`, mean absolute error of each cell's left and upper face over the
            held-out rollouts and all steps; NaN where one of them is lost.
        moving: `(times, 2, height, width)`, velocities of one test flow.
    """

    error: np.ndarray
    wake_error: np.ndarray
    divergence_mean: np.ndarray
    divergence_max: np.ndarray
    energy: np.ndarray
    drag: np.ndarray
    lift: np.ndarray
    error_map: np.ndarray
    moving: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What a seed's methods do on the test flows.

    Attributes:
        tracks: by method, and "reference".
        times: `(times,)`, steps after the start, of `Track.moving`.
        reynolds: `(rollouts,)`.
        extrapolated: `(rollouts,)`, whether the Reynolds number is outside the range trained on, so that no
            mean has the rollout in it.
        dt: time of a step.
    """

    tracks: dict[str, Track]
    times: np.ndarray
    reynolds: np.ndarray
    extrapolated: np.ndarray
    dt: float

    @property
    def methods(self) -> tuple[str, ...]:
        """Of all tracks but the reference's."""
        return tuple(name for name in self.tracks if name != REFERENCE)

    @property
    def shown_reynolds(self) -> float:
        """Of the flow in `Track.moving`."""
        return float(self.reynolds[shown_row(self.extrapolated)])

    @property
    def held_out(self) -> np.ndarray:
        """`(rollouts,)`: those by which methods are compared, see `held_out`."""
        return held_out(self.extrapolated)

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """By method, `(held-out rollouts, horizon)`: what the table's figure is the mean of."""
        return {method: self.tracks[method].error[self.held_out] for method in self.methods}

    def lost(self) -> list[tuple[str, float, int, int]]:
        """Every rollout that blew up, extrapolated ones too: method, Reynolds number, row, step from 1."""
        lost = []
        for method in self.methods:
            gone = np.isnan(self.tracks[method].error)
            for row in np.flatnonzero(gone.any(axis=1)):
                lost.append((method, float(self.reynolds[row]), int(row), int(gone[row].argmax()) + 1))
        return lost

    def stability(self, method: str) -> np.ndarray:
        """`(rollouts,)`, steps until the error passes the solver's own, see `diagnostics.stability`."""
        return diagnostics.stability(self.tracks[method].error, self.tracks[SOLVER].error)

    def drag_error(self, method: str) -> np.ndarray:
        """`(rollouts,)`, the mean over steps of |C_D - the reference's at the same step|."""
        return np.abs(self.tracks[method].drag - self.tracks[REFERENCE].drag).mean(axis=1)


def held_out(extrapolated: np.ndarray) -> np.ndarray:
    """Which rollouts are within the range trained on, or all of them if none is."""
    return ~extrapolated if not extrapolated.all() else np.ones_like(extrapolated)


def rms(values: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.square(values).mean()))


def shown_row(extrapolated: np.ndarray) -> int:
    """The rollout that is shown: of a flow in mid-range."""
    inside = np.flatnonzero(~extrapolated)
    return int(inside[len(inside) // 2])


def figures(found: Evaluation, method: str) -> dict[str, float | int | None]:
    """A method's figures for `result.json`; None where a rollout that they need was lost."""
    track, rows = found.tracks[method], found.held_out
    errors = track.error[rows]
    finite = np.isfinite(errors).all(axis=1)
    values = {
        "MAE": errors.mean(),
        "MAE at the last step": errors[finite, -1].mean() if finite.any() else np.nan,
        "MAE in the wake": track.wake_error[rows].mean(),
        "mean divergence": track.divergence_mean[rows].mean(),
        "largest divergence": track.divergence_max[rows].max(),
        "kinetic energy": track.energy[rows].mean(),
        "stable steps": found.stability(method)[rows].mean(),
        "mean drag coefficient": track.drag[rows].mean(),
        "rms lift coefficient": rms(track.lift[rows]),
        "error of the drag coefficient": found.drag_error(method)[rows].mean(),
    }
    beyond = found.extrapolated
    if beyond.any() and not beyond.all():
        values["MAE extrapolated"] = track.error[beyond].mean()
    told = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
    return {**told, "rollouts": len(errors), "rollouts that blew up": int((~finite).sum())}


def to_fields(found: Evaluation, method: str) -> dict[str, np.ndarray]:
    """All that was measured of a method, the reference and the solver alone, as arrays by name."""
    arrays = {name: getattr(found, name) for name in NUMBERS}
    for prefix, name in (("", method), (f"{REFERENCE} ", REFERENCE), (f"{SOLVER} ", SOLVER)):
        for series in fields(Track):
            arrays[prefix + series.name] = getattr(found.tracks[name], series.name)
    return arrays


def from_fields(config: Config, arrays: Mapping[str, Mapping[str, Any]]) -> Evaluation:
    """What `to_fields` gave of each method of a seed, together."""

    def track(method: str, prefix: str = "") -> Track:
        return Track(**{series.name: arrays[method][prefix + series.name] for series in fields(Track)})

    first = next(iter(arrays))
    tracks = {REFERENCE: track(first, f"{REFERENCE} ")}
    if SOLVER not in arrays:
        tracks[SOLVER] = track(first, f"{SOLVER} ")
    tracks |= {method: track(method) for method in arrays}
    numbers = {name: arrays[first][name] for name in NUMBERS}
    return Evaluation(tracks, **numbers, dt=config.dt)


class Yardstick:
    """The test flows, those outside the range trained on, and what all methods are compared with on them.

    Args:
        config: Of the run.
        data: Of the run.

    Attributes:
        reference: What was measured of the reference.
        alone: What was measured of the solver alone, which has rows of its own in no ledger.
    """

    def __init__(self, config: Config, data: WakeData) -> None:
        self.config, flows = config, data.evaluated
        self._frames, self._reynolds = flows.rollouts(config.test_starts, config.horizon)
        self._measure = self._frames.cpu()  # rollouts run where the flows are
        self.extrapolated = _extrapolated(config, self._reynolds)
        moving = min(MOVING, config.horizon)
        self._times = torch.linspace(config.horizon / moving, config.horizon, moving).round().long()
        self._gauges = Gauges.of(Channel(config.width), config.dt)
        self.reference = self._track(self._measure[:, 1:].unbind(dim=1))
        self.alone = self.measured(NoCorrector(), WakeFlow(config.width, dt=config.dt, failures="keep"))

    def measured(self, network: nn.Module, solver: Solver) -> Track:
        """Roll a network out with the solver, which marks rows that failed NaN."""
        steps = corrected_steps(network, solver, self._frames[:, 0], self._reynolds, self.config.horizon)
        return self._track(steps)

    def evaluation(self, tracks: Mapping[str, Track]) -> Evaluation:
        """Tracks by method, beside the reference's and the solver's."""
        return Evaluation(
            {REFERENCE: self.reference, SOLVER: self.alone, **tracks},
            self._times.numpy(),
            self._reynolds.cpu().numpy(),
            self.extrapolated,
            dt=self.config.dt,
        )

    @torch.no_grad()
    def _track(self, steps: Iterable[Tensor]) -> Track:
        """Measure each velocity of `steps` against the reference."""
        gauges, frames, reynolds = self._gauges, self._measure, self._reynolds.cpu()
        row = shown_row(self.extrapolated)
        judged = torch.from_numpy(held_out(self.extrapolated))
        series: dict[str, list[Tensor]] = {name: [] for name in SERIES}
        total, kept = torch.zeros(frames.shape[-2:], dtype=torch.float64), []
        wanted, before = set(self._times.tolist()), frames[:, 0]
        for step, velocity in enumerate((velocity.cpu() for velocity in steps), start=1):
            difference = velocity - frames[:, step]
            values = (
                difference.abs().flatten(1).mean(dim=1),
                gauges.wake_error(difference),
                *gauges.divergences(velocity),
                diagnostics.kinetic_energy(velocity),
                *gauges.forces(before, velocity, reynolds),
            )
            before = velocity
            for name, value in zip(SERIES, values, strict=True):
                series[name].append(value)
            total += difference[judged].abs().mean(dim=(0, 1), dtype=torch.float64)
            if step in wanted:
                kept.append(velocity[row])
        arrays = {name: torch.stack(values, dim=1).numpy() for name, values in series.items()}
        gone = diagnostics.lost(arrays["error"])
        arrays = {name: np.where(gone, np.nan, values) for name, values in arrays.items()}
        mean = total / len(gone[0])
        if gone[judged.numpy()].any():
            mean = torch.full_like(mean, torch.nan)
        return Track(
            **arrays,
            error_map=mean.float().numpy(),
            moving=torch.stack(kept).numpy(),
        )


def _extrapolated(config: Config, reynolds: Tensor) -> np.ndarray:
    """Rollouts `(rollouts,)` by which methods are not compared: outside the range trained on.

    Where all of the test is outside, it is what there is to compare by; the further ones still are not.
    """
    low, high = min(config.train_reynolds), max(config.train_reynolds)
    outside = ((reynolds < low) | (reynolds > high)).cpu().numpy()
    tests = len(config.test_reynolds) * config.test_starts
    if outside[:tests].all():
        outside[:tests] = False
    return outside


def write(found: Evaluation, path: Path) -> None:
    """Keep an evaluation, so that the report can be made again without the solver.

    The layout is that of the classes: `/tracks/<method>/<series>`, the arrays of `Evaluation` beside them,
    single numbers as attributes of the file.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for method, track in found.tracks.items():
            for series in fields(Track):
                name = f"tracks/{method}/{series.name}"
                file.create_dataset(name, data=getattr(track, series.name), compression="gzip")
        for name in NUMBERS:
            file[name] = getattr(found, name)
        file.attrs.update({name: getattr(found, name) for name in ATTRIBUTES})
        file.attrs["methods"] = list(found.tracks)  # HDF5 lists groups by the alphabet
    atomic.write_bytes(path, buffer.getvalue())
