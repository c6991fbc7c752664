"""The reference wakes: computed on a fine grid, kept on the coarse one, in a file for each setting.

The file's name carries a hash of every setting and version, so data made otherwise is never taken
by mistake; it appears under that name only when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from simulators.errors import ReferenceDataError
from simulators.wake_flow import reference_file
from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.geometry import Channel
from simulators.wake_flow.reference_settings import ReferenceSettings
from simulators.wake_flow.staggered import downsample, start

Progress = Callable[[int, int], None]
SOON, OFTEN = 1.0, 5.0  # seconds until a computation is first written, and between two writes
SHARE = 20.0  # times what a write takes, work lies between two


@dataclass(frozen=True)
class ReferenceFlows:
    """Reference data.

    Attributes:
        frames: `(reynolds, frames, 2, height, width)`, float32, on the source grid, `dt` apart.
        reynolds: `(reynolds,)`, float32.
        path: the file.
        reused: whether it was there already.
    """

    frames: Tensor
    reynolds: Tensor
    path: Path
    reused: bool


def load_or_compute(
    settings: ReferenceSettings, folder: str | os.PathLike[str], progress: Progress | None = None
) -> ReferenceFlows:
    """Read the reference data from `folder`, or compute and write it.

    A computation that is interrupted goes on where it was some seconds before, from a file beside. Of several
    processes that want the same data one computes it, on one thread of torch.

    Args:
        settings: what to compute.
        folder: made if it is not there.
        progress: called with (steps done, steps in all), which are those of all Reynolds numbers at once.

    Raises:
        ReferenceDataError: a file holds other data than its name says, or a flow blew up.
        OSError: the folder cannot be written.

    Warns:
        ReferenceWarning: the file is damaged, and is computed again.
    """
    path, factor = settings.path(folder), settings.reference_width // settings.width
    shape = (len(settings.reynolds), settings.frames, *Channel(settings.width).shape)
    frames, reused = reference_file.load_or_make(
        path,
        settings.attributes(),
        shape,
        lambda: simulate(
            settings, lambda _, velocity: downsample(velocity, factor), progress, reference_file.part_of(path)
        ),
    )
    return ReferenceFlows(frames, torch.tensor(settings.reynolds, dtype=torch.float32), path, reused)


def simulate(
    settings: ReferenceSettings,
    keep: Callable[[int, Tensor], Tensor],
    progress: Progress | None = None,
    part: Path | None = None,
) -> Tensor:
    """The fine solver's flows, all Reynolds numbers as the rows of one velocity.

    Args:
        settings: which flows.
        keep: of a frame's number and its velocity `(reynolds, 2, fine height, fine width)`, float32, what
            is kept of it, `(reynolds, ...)`.
        progress: called with (steps done, steps in all).
        part: the file from which an interrupted computation goes on; None to keep none.

    Returns:
        `(reynolds, frames, ...)`.

    Raises:
        ReferenceDataError: a flow blew up.
    """
    solver = WakeFlow(settings.reference_width, dt=settings.reference_dt, advection=settings.advection)
    reynolds = torch.tensor(settings.reynolds, dtype=torch.float32)
    velocity = start(solver.step.channel, settings.poke, settings.along).repeat(len(reynolds), 1, 1, 1)
    first, kept = 0, list[Tensor]()
    if part is not None and (left := reference_file.read_part(part)) is not None:
        first, velocity, kept = left[0] + 1, left[1], left[2]
    saved, wait = monotonic(), SOON
    with one_thread():
        for done in range(first, settings.steps + 1):
            if done:
                velocity = solver.evaluate_rows(velocity, reynolds)
                _check_finite(velocity, settings, done)
            frame, between = divmod(done - settings.warm_up, settings.steps_per_frame)
            if frame >= 0 and not between:
                kept.append(keep(frame, velocity))
            if progress is not None:
                progress(done, settings.steps)
            if part is not None and monotonic() - saved >= wait:
                started = monotonic()
                reference_file.write_part(part, done, velocity, kept)
                saved = monotonic()
                wait = max(OFTEN, SHARE * (saved - started))
    return torch.stack(kept, dim=1)


def _check_finite(velocity: Tensor, settings: ReferenceSettings, done: int) -> None:
    lost = ~velocity.isfinite().flatten(1).all(1)
    if lost.any():
        row = int(lost.nonzero()[0])
        raise ReferenceDataError(
            f"Reference at Re {settings.reynolds[row]:g} (row {row}): expected finite velocities, got NaN or "
            f"infinity in step {done} of {settings.steps}. "
            f"Take a smaller reference_dt than {settings.reference_dt:g}."
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread meanwhile, so that data do not depend on how many threads the caller uses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
