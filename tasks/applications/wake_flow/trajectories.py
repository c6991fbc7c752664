"""Predicted trajectories as an HDF5 file: every velocity of every rollout, for tools of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import h5py
import torch
from torch import Tensor, nn

from simulators.wake_flow.geometry import CENTRE, LENGTHS, RADIUS, SPEED
from tasks.applications.wake_flow.config import Config
from tasks.applications.wake_flow.data import WakeData
from tasks.applications.wake_flow.evaluation import REFERENCE
from tasks.applications.wake_flow.rollout import Solver, corrected_steps
from tasks.folder import atomic

FORMAT = 1
STORAGE: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}  # with a checksum


@torch.no_grad()
def write(
    path: Path, config: Config, data: WakeData, solver: Solver, networks: Mapping[str, nn.Module]
) -> Path:
    """Roll every method out over the evaluated flows and write its predictions, a step at a time.

    Layout of the file:

    - `/velocity/<method>` and `/velocity/reference`: float32 `(rollouts, steps + 1, 2, height, width)`, in
      units of the inflow's speed, step 0 the common start; x on left and y on upper faces of the cells. A
      rollout that blew up is NaN from there on.
    - `/reynolds`: float32 `(rollouts,)`, Re_D = U D / nu.
    - `/time`: float64 `(steps + 1,)`, in units in which U is 1 and D is 20.
    - Attributes: `format`, `dt`, `cell` (side of one), `lengths`, `centre` (across, along), `diameter`.

    It appears under its name when it is complete. Its size is 8 bytes a cell, step, rollout and method
    before compression.

    Args:
        path: the file.
        config: the configuration of the run.
        data: the data of the run.
        solver: the coarse solver, which marks failed rows NaN.
        networks: the networks by method.
    """
    frames, reynolds = data.evaluated.rollouts(config.test_starts, config.horizon)
    start = frames[:, 0]

    def fill(stream: IO[bytes]) -> None:
        with h5py.File(stream, "w") as file:
            file["reynolds"] = reynolds.cpu().numpy()
            file["time"] = torch.arange(config.horizon + 1, dtype=torch.float64).numpy() * config.dt
            file.attrs.update(
                {
                    "format": FORMAT,
                    "dt": config.dt,
                    "cell": LENGTHS[0] / config.width,
                    "lengths": LENGTHS,
                    "centre": CENTRE,
                    "diameter": 2 * RADIUS,
                }
            )
            _fill(file, REFERENCE, start, frames[:, 1:].unbind(dim=1), config.horizon)
            for method, network in networks.items():
                steps = corrected_steps(network, solver, start, reynolds, config.horizon)
                _fill(file, method, start, steps, config.horizon)

    atomic.write(path, fill)
    return path


def _fill(file: h5py.File, name: str, start: Tensor, steps: Iterable[Tensor], count: int) -> None:
    shape = (len(start), count + 1, *start.shape[1:])
    place = file.create_dataset(
        f"velocity/{name}", shape, "float32", chunks=(1, 1, *start.shape[1:]), **STORAGE
    )
    place[:, 0] = start.cpu().numpy() / SPEED
    for step, velocity in enumerate(steps, start=1):
        place[:, step] = velocity.cpu().numpy() / SPEED
