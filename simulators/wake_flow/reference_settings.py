"""`ReferenceSettings`: what reference data depends on, and the name of its file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blackbox.errors import ConfigurationError
from simulators.wake_flow.geometry import CYLINDER, LARGEST_REYNOLDS, Channel
from simulators.wake_flow.step import Advection, WakeStep

FORMAT = 4  # raise it when what the file means changes
VERSIONS = ("phiflow", "phiml", "torch", "numpy")


@dataclass(frozen=True)
class ReferenceSettings:
    """What reference data depends on.

    Args:
        reynolds: Re_D of the simulations.
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
        fine, coarse = (Channel(width) for width in (self.reference_width, self.width))
        WakeStep.check(self.dt, self.advection, coarse)
        WakeStep.check(self.reference_dt, self.advection, fine)
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
        versions = {f"{name}_version": version(name) for name in VERSIONS}
        return asdict(self) | {"obstacles": repr((CYLINDER,))} | versions | {"format": FORMAT}

    def key(self) -> str:
        """Sixteen hexadecimal digits that change with any of the attributes."""
        return hashlib.sha256(json.dumps(self.attributes(), sort_keys=True).encode()).hexdigest()[:16]

    def path(self, folder: str | os.PathLike[str]) -> Path:
        """The file in `folder` that holds this data."""
        return Path(folder) / f"wake_{self.width}_of_{self.reference_width}_{self.key()}.h5"
