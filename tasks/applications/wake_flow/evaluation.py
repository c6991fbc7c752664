"""The evaluation of methods: rollouts over unseen Reynolds numbers, measured as they go, and kept."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.geometry import Channel
from tasks.applications.wake_flow import diagnostics
from tasks.applications.wake_flow.config import Config
from tasks.applications.wake_flow.data import WakeData
from tasks.applications.wake_flow.diagnostics import Gauges
from tasks.applications.wake_flow.networks import NoCorrector
from tasks.applications.wake_flow.rollout import Solver, corrected_steps
from tasks.folder import atomic

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""What `Yardstick.measured` gives, by name."""
Tracks: TypeAlias = Mapping[str, Arrays]
"""What was measured of the reference, the solver alone and each method of a seed, see `tracks`."""

REFERENCE, SOLVER = "reference", "SRC"
MOVING = 48  # times kept of one flow, for the animation, at most
NUMBERS = {"times": ("time",), "reynolds": ("rollout",), "extrapolated": ("rollout",)}
SERIES = ("error", "wake_error", "divergence_mean", "divergence_max", "energy", "drag", "lift")
# x is across the stream, y along it
TRACK = {
    **dict.fromkeys(SERIES, ("rollout", "step")),
    "error_map": ("y", "x"),
    "moving": ("time", "component", "y", "x"),
}
DIMENSIONS = NUMBERS | {
    prefix + name: axes for prefix in ("", f"{REFERENCE} ", f"{SOLVER} ") for name, axes in TRACK.items()
}


class Yardstick:
    """The test flows, those outside the range trained on, and what all methods are compared with on them.

    Args:
        config: The run's settings.
        data: The run's flows.
    """

    def __init__(self, config: Config, data: WakeData) -> None:
        self.config = config
        self._frames, self._reynolds = data.evaluated.rollouts(config.test_starts, config.horizon)
        self._measure = self._frames.cpu()  # rollouts run where the flows are
        self._gauges = Gauges(Channel(config.width), config.dt)
        moving = min(MOVING, config.horizon)
        times = torch.linspace(config.horizon / moving, config.horizon, moving).round().long()
        self._common_arrays: dict[str, np.ndarray] = {
            "times": times.numpy(),
            "reynolds": self._reynolds.cpu().numpy(),
            "extrapolated": _extrapolated(config, self._reynolds),
        }
        reference = self._track(self._measure[:, 1:].unbind(dim=1))
        # the solver alone has rows of its own, which are in no ledger
        alone = self._rollout(NoCorrector(), WakeFlow(config.width, dt=config.dt, failures="keep"))
        for prefix, track in ((REFERENCE, reference), (SOLVER, alone)):
            self._common_arrays |= {f"{prefix} {name}": values for name, values in track.items()}

    def measured(self, network: nn.Module, solver: Solver) -> dict[str, np.ndarray]:
        """Roll a network out with the solver, which marks rows that failed NaN.

        Returns:
            Arrays in the units of `diagnostics`. A rollout that is lost (`diagnostics.lost`) is NaN from that
            step on in every series.

            - `error`, `wake_error` `(rollouts, horizon)`: mean absolute error of the velocity, everywhere and
              in the window `diagnostics.WAKE`.
            - `divergence_mean`, `divergence_max` `(rollouts, horizon)`: over the cells outside the cylinder.
            - `energy` `(rollouts, horizon)`: kinetic.
            - `drag`, `lift` `(rollouts, horizon)`: coefficients between a step and the one before, see
              `simulators.wake_flow.forces`.
            - `error_map` `(height, width)`: mean absolute error of each cell's left and upper face over the
              held-out rollouts and all steps; NaN where one of them is lost.
            - `moving` `(times, 2, height, width)`: velocities of one test flow, `times` steps on.
            - All of these of the reference ("reference drag") and of the solver alone ("SRC error").
            - `reynolds` `(rollouts,)`, and `extrapolated` `(rollouts,)`: whether that is outside the range
              trained on, so that no mean has the rollout in it.
        """
        return {**self._common_arrays, **self._rollout(network, solver)}

    def _rollout(self, network: nn.Module, solver: Solver) -> dict[str, np.ndarray]:
        return self._track(
            corrected_steps(network, solver, self._frames[:, 0], self._reynolds, self.config.horizon)
        )

    @torch.no_grad()
    def _track(self, steps: Iterable[Tensor]) -> dict[str, np.ndarray]:
        """Measure each velocity of `steps` against the reference."""
        gauges, frames, reynolds = self._gauges, self._measure, self._reynolds.cpu()
        extrapolated = self._common_arrays["extrapolated"]
        row, judged = shown_row(extrapolated), torch.from_numpy(held_out(extrapolated))
        series: dict[str, list[Tensor]] = {name: [] for name in SERIES}
        total, track = torch.zeros(frames.shape[-2:], dtype=torch.float64), []
        times, frame = set(self._common_arrays["times"].tolist()), frames[:, 0]
        for step, velocity in enumerate((velocity.cpu() for velocity in steps), start=1):
            difference = velocity - frames[:, step]
            values = (
                difference.abs().flatten(1).mean(dim=1),
                gauges.wake_error(difference),
                *gauges.divergences(velocity),
                diagnostics.kinetic_energy(velocity),
                *gauges.forces(frame, velocity, reynolds),
            )
            frame = velocity
            for name, value in zip(SERIES, values, strict=True):
                series[name].append(value)
            total += difference[judged].abs().mean(dim=(0, 1), dtype=torch.float64)
            if step in times:
                track.append(velocity[row])
        arrays = {name: torch.stack(values, dim=1).numpy() for name, values in series.items()}
        blow_ups = diagnostics.lost(arrays["error"])
        mean = total / len(blow_ups[0])
        if blow_ups[judged.numpy()].any():
            mean = torch.full_like(mean, torch.nan)
        return {
            **{name: np.where(blow_ups, np.nan, values) for name, values in arrays.items()},
            "error_map": mean.float().numpy(),
            "moving": torch.stack(track).numpy(),
        }


def _extrapolated(config: Config, reynolds: Tensor) -> np.ndarray:
    """Rollouts `(rollouts,)` that are not used to compare methods: those outside the range trained on.

    Where all of the test is outside, it is used; the further rollouts still are not.
    """
    low, high = min(config.train_reynolds), max(config.train_reynolds)
    outside = ((reynolds < low) | (reynolds > high)).cpu().numpy()
    tests = len(config.test_reynolds) * config.test_starts
    if outside[:tests].all():
        outside[:tests] = False
    return outside


def held_out(extrapolated: np.ndarray) -> np.ndarray:
    """Say which rollouts are within the range trained on, or select all of them if none is."""
    return ~extrapolated if not extrapolated.all() else np.ones_like(extrapolated)


def shown_row(extrapolated: np.ndarray) -> int:
    """The rollout that is shown: of a flow in mid-range."""
    inside = np.flatnonzero(~extrapolated)
    return int(inside[len(inside) // 2])


def rms(values: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.square(values).mean()))


def figures(arrays: Arrays) -> dict[str, float | int | None]:
    """A method's figures for `result.json`; None where a rollout that they need was lost."""
    beyond = arrays["extrapolated"]
    rows = held_out(beyond)
    errors = arrays["error"][rows]
    finite = np.isfinite(errors).all(axis=1)
    drag_error = np.abs(arrays["drag"] - arrays[f"{REFERENCE} drag"]).mean(axis=1)
    values = {
        "MAE": errors.mean(),
        "MAE at the last step": errors[finite, -1].mean() if finite.any() else np.nan,
        "MAE in the wake": arrays["wake_error"][rows].mean(),
        "mean divergence": arrays["divergence_mean"][rows].mean(),
        "largest divergence": arrays["divergence_max"][rows].max(),
        "kinetic energy": arrays["energy"][rows].mean(),
        "stable steps": diagnostics.stability(errors, arrays[f"{SOLVER} error"][rows]).mean(),
        "mean drag coefficient": arrays["drag"][rows].mean(),
        "rms lift coefficient": rms(arrays["lift"][rows]),
        "error of the drag coefficient": drag_error[rows].mean(),
    }
    if beyond.any() and not beyond.all():
        values["MAE extrapolated"] = arrays["error"][beyond].mean()
    plain = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
    return {**plain, "rollouts": len(errors), "rollouts that blew up": int((~finite).sum())}


def tracks(fields: Mapping[str, Arrays]) -> Tracks:
    """Arrays by method; before them those of the reference and of the solver alone, by their own names."""
    first = next(iter(fields.values()))
    common = {name: first[name] for name in NUMBERS}
    baselines = {
        prefix: common | {name: first[f"{prefix} {name}"] for name in TRACK} for prefix in (REFERENCE, SOLVER)
    }
    return {prefix: track for prefix, track in baselines.items() if prefix not in fields} | dict(fields)


def methods(tracks: Tracks) -> list[str]:
    """Return the names of all tracks but the reference's."""
    return [name for name in tracks if name != REFERENCE]


def lost(tracks: Tracks) -> list[tuple[str, float, int, int]]:
    """Every rollout that blew up, extrapolated ones too: method, Reynolds number, row, step from 1."""
    places = []
    for method in methods(tracks):
        blow_ups = np.isnan(tracks[method]["error"])
        for row in np.flatnonzero(blow_ups.any(axis=1)):
            reynolds = float(tracks[method]["reynolds"][row])
            places.append((method, reynolds, int(row), int(blow_ups[row].argmax()) + 1))
    return places


def shown_reynolds(tracks: Tracks) -> float:
    """Return the Reynolds number of the flow that is shown in motion."""
    numbers = tracks[REFERENCE]
    return float(numbers["reynolds"][shown_row(numbers["extrapolated"])])


def write(tracks: Tracks, dt: float, path: Path) -> None:
    """Keep a seed's tracks for other tools: `/tracks/<method>/<series>`, the common arrays beside them.

    Attributes of the file are `methods` (HDF5 lists groups by the alphabet), `dt` and `shown_reynolds`.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for method, track in tracks.items():
            for name in TRACK:
                file.create_dataset(f"tracks/{method}/{name}", data=track[name], compression="gzip")
        for name in NUMBERS:
            file[name] = tracks[REFERENCE][name]
        file.attrs.update(methods=list(tracks), dt=dt, shown_reynolds=shown_reynolds(tracks))
    atomic.write_bytes(path, buffer.getvalue())
