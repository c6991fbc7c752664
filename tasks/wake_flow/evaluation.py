"""The last line: errors on Reynolds numbers never trained on, and the fields that the pictures show."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from tasks.errors import RunFolderError
from tasks.runs import atomic
from tasks.wake_flow.config import Config
from tasks.wake_flow.data import WakeData
from tasks.wake_flow.rollout import Solver, corrected_steps, rollout_errors

SHOWN = 4  # times in the pictures, evenly spaced up to the horizon


@dataclass(frozen=True)
class Evaluation:
    """What a seed's methods do on the test flows.

    Attributes:
        errors: by method, `(rollouts, horizon)` mean absolute error, in units of the inflow's speed.
        fields: by method, and "reference", `(SHOWN, 2, height, width)` velocities of one test flow.
        times: `(SHOWN,)`, steps after the start.
        reynolds: `(rollouts,)`.
        shown_reynolds: of the flow in `fields`.
    """

    errors: dict[str, np.ndarray]
    fields: dict[str, np.ndarray]
    times: np.ndarray
    reynolds: np.ndarray
    shown_reynolds: float


def evaluate(config: Config, data: WakeData, solver: Solver, networks: dict[str, nn.Module]) -> Evaluation:
    """Roll every method out over the test flows.

    Args:
        config: of the run.
        data: of the run.
        solver: the coarse solver.
        networks: by method.
    """
    frames, reynolds = data.test.rollouts(config.test_starts, config.horizon)
    row = len(reynolds) // 2  # a flow in the middle of the range
    times = torch.linspace(config.horizon / SHOWN, config.horizon, SHOWN).round().long()
    errors: dict[str, np.ndarray] = {}
    fields = {"reference": frames[row, times].numpy()}
    for method, network in networks.items():
        found = rollout_errors(network, solver, data.test, config.test_starts, config.horizon)
        errors[method] = found.numpy()
        fields[method] = _fields(network, solver, frames[row, 0], reynolds[row], times).numpy()
    return Evaluation(errors, fields, times.numpy(), reynolds.numpy(), reynolds[row].item())


@torch.no_grad()
def _fields(network: nn.Module, solver: Solver, start: Tensor, reynolds: Tensor, times: Tensor) -> Tensor:
    rollout = corrected_steps(network, solver, start[None], reynolds[None], int(times[-1]))
    return torch.cat([velocity for step, velocity in enumerate(rollout, start=1) if step in times])


def write(evaluation: Evaluation, path: Path) -> None:
    """Keep an evaluation, so that the report can be made again without the solver."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for method, values in evaluation.errors.items():
            file.create_dataset(f"errors/{method}", data=values, compression="gzip")
        for method, values in evaluation.fields.items():
            file.create_dataset(f"fields/{method}", data=values, compression="gzip")
        file["times"] = evaluation.times
        file["reynolds"] = evaluation.reynolds
        file.attrs["shown_reynolds"] = evaluation.shown_reynolds
    atomic.write_bytes(path, buffer.getvalue())


def read(path: Path) -> Evaluation:
    """An evaluation that `write` kept.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            errors, fields = (_group(file, name) for name in ("errors", "fields"))
            times, reynolds = np.asarray(file["times"]), np.asarray(file["reynolds"])
            shown = np.asarray(file.attrs["shown_reynolds"]).item()
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:  # h5py's, for kinds of damage
        reason = " ".join(str(error).split())
        found = f"one that cannot be read ({reason})" if path.exists() else "no such file"
        raise RunFolderError(
            f"{path}: expected the evaluation of a finished run, got {found}. "
            f"Delete {path.parent / 'result.json'} and run: blackbox resume {quote(str(path.parent))}"
        ) from None
    return Evaluation(errors, fields, times, reynolds, shown)


def _group(file: h5py.File, name: str) -> dict[str, np.ndarray]:
    return {method: np.asarray(values) for method, values in file.require_group(name).items()}
