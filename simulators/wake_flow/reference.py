"""The reference wakes: computed on a fine grid, kept on the coarse one, in a file for each setting.

The file's name carries a hash of every setting and version, so data made otherwise is never taken
by mistake; it appears under that name only when it is complete. Until then what is ready is kept
beside it, so that a generation that was killed goes on.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from blackbox.checks import check_count
from simulators.errors import ReferenceDataError, ReferenceWarning
from simulators.wake_flow import reference_file
from simulators.wake_flow.generation import Progress, generate
from simulators.wake_flow.geometry import Channel
from simulators.wake_flow.reference_settings import ReferenceSettings


@dataclass(frozen=True)
class ReferenceFlows:
    """Reference data.

    Attributes:
        frames: `(reynolds, frames, 2, height, width)`, float32, on the source grid, `dt` apart.
        reynolds: `(reynolds,)`, float32.
        path: the file.
        reused: whether it was there already.
    """

    frames: torch.Tensor
    reynolds: torch.Tensor
    path: Path
    reused: bool


def load_or_compute(
    settings: ReferenceSettings,
    folder: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    workers: int = 1,
) -> ReferenceFlows:
    """Read the reference data from `folder`, or compute and write it.

    Each Reynolds number is written when it is ready, and is there after a crash or an interruption: the
    next call computes the others. Of several processes that want the same data one computes it.

    Args:
        settings: what to compute.
        folder: made if it is not there.
        progress: called with (steps done, steps in all), those of all simulations together.
        workers: Reynolds numbers computed at once, each in a process; the data are the same to the bit,
            since all is computed on one thread of torch. Above 1 a script needs `if __name__ == "__main__":`.

    Raises:
        ReferenceDataError: a file holds other data than its name says, a simulation blew up, or a process
            died.
        ConfigurationError: `workers` is no whole number above 0.
        OSError: the folder cannot be written.

    Warns:
        ReferenceWarning: the file, or a part of an unfinished one, is damaged, and is computed again.
    """
    check_count("load_or_compute", "workers", workers)
    path, attributes = settings.path(folder), settings.attributes()
    reynolds = torch.tensor(settings.reynolds, dtype=torch.float32)
    shape = (len(settings.reynolds), settings.frames, *Channel(settings.width).shape)
    frames = reference_file.read(path, attributes, shape)
    if frames is not None:
        return ReferenceFlows(frames, reynolds, path, reused=True)
    with reference_file.alone(path):
        frames = reference_file.read(path, attributes, shape)  # made while this process waited?
        if frames is not None:
            return ReferenceFlows(frames, reynolds, path, reused=True)
        if path.exists():
            warnings.warn(f"{path} is damaged and is computed again.", ReferenceWarning, stacklevel=2)
        parts = generate(settings, reference_file.parts_folder(path), progress, workers)
        reference_file.join(path, parts, attributes)
    frames = reference_file.read(path, attributes, shape)
    if frames is None:
        raise ReferenceDataError(
            f"{path}: expected the file just written, got a damaged one. Check the disk."
        )
    return ReferenceFlows(frames, reynolds, path, reused=False)
