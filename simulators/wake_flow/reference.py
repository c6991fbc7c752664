"""The reference wakes: computed on a fine grid, kept on the coarse one, in a file for each setting.

The file's name carries a hash of every setting and version, so data made otherwise is never taken
by mistake; it appears under that name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from blackbox.errors import ConfigurationError
from simulators.errors import ReferenceDataError, ReferenceWarning
from simulators.wake_flow import reference_file
from simulators.wake_flow.geometry import LARGEST_REYNOLDS, Channel
from simulators.wake_flow.staggered import downsample, start
from simulators.wake_flow.step import Advection, WakeStep

FORMAT = 1  # raise it when what the file means changes
VERSIONS = ("phiflow", "phiml", "torch", "numpy")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReferenceSettings:
    """What reference data depends on.

    Args:
        reynolds: Re_D of the simulations, stepped together.
        width: cells across of the source grid, on which frames are kept.
        reference_width: cells across of the fine grid, a multiple of `width`.
        dt: time between frames: the source solver's time step.
        reference_dt: the fine solver's time step; `dt` is a multiple of it.
        warm_up: fine steps before the first frame.
        frames: frames kept of each simulation.
        advection: of the fine solver.
        poke: strength of the start's poke, see `start`.
        along: its place.

    Raises:
        ConfigurationError: a value is out of its range, or two do not fit.
    """

    reynolds: tuple[float, ...] = (120.0, 170.0, 240.0, 340.0, 480.0, 680.0, 960.0)
    width: int = 16
    reference_width: int = 64
    dt: float = 1.0
    reference_dt: float = 0.5
    warm_up: int = 400
    frames: int = 200
    advection: Advection = "mac-cormack"
    poke: float = 0.5
    along: float = 80.0

    def __post_init__(self) -> None:
        """Refuse at once what would fail, or mislead, hours later."""
        object.__setattr__(self, "reynolds", tuple(float(r) for r in self.reynolds))
        fine = Channel(self.reference_width)
        Channel(self.width)
        WakeStep.check(self.dt, self.advection)
        WakeStep.check(self.reference_dt, self.advection)
        smallest = fine.smallest_reynolds(self.reference_dt)
        ratio = self.dt / self.reference_dt
        possible = bool(self.reynolds) and all(smallest <= r <= LARGEST_REYNOLDS for r in self.reynolds)
        divides = round(ratio) >= 1 and abs(ratio - round(ratio)) < 1e-9
        for sound, name, expected in (
            (possible, "reynolds", f"some from {smallest:.3g} (explicit diffusion) to {LARGEST_REYNOLDS:g}"),
            (self.reference_width % self.width == 0, "reference_width", f"a multiple of width {self.width}"),
            (divides, "reference_dt", f"a whole fraction of dt {self.dt:g}"),
            (self.warm_up >= 0, "warm_up", "0 or more steps"),
            (self.frames >= 1, "frames", "at least 1"),
        ):
            if not sound:
                raise ConfigurationError(
                    f"ReferenceSettings, {name}: expected {expected}, got {getattr(self, name)!r}."
                )

    @property
    def steps_per_frame(self) -> int:
        """Fine steps from one frame to the next."""
        return round(self.dt / self.reference_dt)

    @property
    def steps(self) -> int:
        """Fine steps in all."""
        return self.warm_up + (self.frames - 1) * self.steps_per_frame

    def attributes(self) -> dict[str, Any]:
        """Everything that the data depends on: these settings, versions, the file's format."""
        return asdict(self) | {f"{name}_version": version(name) for name in VERSIONS} | {"format": FORMAT}

    def key(self) -> str:
        """Sixteen hexadecimal digits that change with any of the attributes."""
        return hashlib.sha256(json.dumps(self.attributes(), sort_keys=True).encode()).hexdigest()[:16]

    def path(self, folder: str | os.PathLike[str]) -> Path:
        """The file in `folder` that holds this data."""
        return Path(folder) / f"wake_{self.width}_of_{self.reference_width}_{self.key()}.h5"


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
    settings: ReferenceSettings, folder: str | os.PathLike[str], progress: Progress | None = None
) -> ReferenceFlows:
    """Read the reference data from `folder`, or compute and write it.

    Args:
        settings: what to compute.
        folder: made if it is not there.
        progress: called with (steps done, steps in all) while computing.

    Raises:
        ReferenceDataError: a file holds other data than its name says, or a simulation blew up.
        OSError: the folder cannot be written.

    Warns:
        ReferenceWarning: the file is damaged, and is computed again.
    """
    path = settings.path(folder)
    reynolds = torch.tensor(settings.reynolds, dtype=torch.float32)
    if path.exists():
        shape = (len(settings.reynolds), settings.frames, *Channel(settings.width).shape)
        frames = reference_file.read(path, settings.attributes(), shape)
        if frames is not None:
            return ReferenceFlows(frames, reynolds, path, reused=True)
        warnings.warn(f"{path} is damaged and is computed again.", ReferenceWarning, stacklevel=2)
    frames = compute(settings, progress)
    reference_file.write(path, frames, settings.attributes())
    return ReferenceFlows(frames, reynolds, path, reused=False)


def compute(settings: ReferenceSettings, progress: Progress | None = None) -> torch.Tensor:
    """Run the fine solver; `(reynolds, frames, 2, height, width)`, float32, on the source grid.

    Raises:
        ReferenceDataError: a simulation blew up.
    """
    step = WakeStep(Channel(settings.reference_width), settings.reference_dt, settings.advection)
    reynolds = torch.tensor(settings.reynolds, dtype=torch.float32)
    velocity = start(step.channel, settings.poke, settings.along).repeat(len(reynolds), 1, 1, 1)
    frames = []
    with torch.no_grad():
        for done in range(settings.steps + 1):
            if done >= settings.warm_up and (done - settings.warm_up) % settings.steps_per_frame == 0:
                frames.append(downsample(velocity, settings.reference_width // settings.width))
                _check_finite(frames[-1], done, settings)
            if progress is not None:
                progress(done, settings.steps)
            if done < settings.steps:
                velocity = step(velocity, reynolds)
    return torch.stack(frames, 1)


def _check_finite(frame: torch.Tensor, step: int, settings: ReferenceSettings) -> None:
    finite = frame.isfinite().flatten(1).all(1)
    if not finite.all():
        reynolds = settings.reynolds[int((~finite).nonzero()[0])]
        raise ReferenceDataError(
            f"Reference at Re {reynolds:g}: expected finite velocities, got NaN or infinity by step {step}. "
            f"Take a smaller reference_dt than {settings.reference_dt:g}."
        )
