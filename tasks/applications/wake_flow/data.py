"""The reference flows as training windows, pairs and rollouts; one set of flows for each purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from simulators.wake_flow.reference import load_or_compute
from simulators.wake_flow.reference_settings import ReferenceSettings
from tasks.applications.wake_flow.config import Config
from tasks.applications.wake_flow.networks import Scales
from tasks.errors import SolverError
from zo.estimators import Key

WINDOWS, PAIRS = 101, 102  # first words of the key's path for these draws; `zo` uses small ones


@dataclass(frozen=True)
class Flows:
    """Reference flows at some Reynolds numbers.

    Attributes:
        frames: `(flows, frames, 2, height, width)`, velocity on the staggered source grid.
        reynolds: `(flows,)`.
    """

    frames: Tensor
    reynolds: Tensor

    def to(self, device: str) -> Flows:
        """The same on a device."""
        return Flows(self.frames.to(device), self.reynolds.to(device))

    def windows(self, key: Key, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Windows drawn at random: frames `(count, length + 1, 2, height, width)`, Re `(count,)`."""
        generator = key.generator(WINDOWS)
        flow = torch.randint(len(self.frames), (count,), generator=generator)
        first = torch.randint(self.frames.shape[1] - length, (count,), generator=generator)
        along = first[:, None] + torch.arange(length + 1)
        return self.frames[flow[:, None], along], self.reynolds[flow]

    def rollouts(self, starts: int, horizon: int) -> tuple[Tensor, Tensor]:
        """Windows from evenly spaced first frames, all that of one flow together.

        Returns:
            frames `(flows * starts, horizon + 1, 2, height, width)` and Re `(flows * starts,)`.
        """
        last = self.frames.shape[1] - horizon - 1
        first = torch.linspace(0, last, starts).round().long() if starts > 1 else torch.tensor([last])
        along = first[:, None] + torch.arange(horizon + 1)
        return self.frames[:, along].flatten(0, 1), self.reynolds.repeat_interleave(starts)


@dataclass(frozen=True)
class WakeData:
    """The sets of flows, and the file that they came from.

    Attributes:
        train, validation, test: flows.
        path: the reference file of these three.
        reused: whether it was there already.
        extrapolated: flows outside the range trained on, from a file of their own; None without any.
    """

    train: Flows
    validation: Flows
    test: Flows
    path: Path
    reused: bool
    extrapolated: Flows | None = None

    @property
    def evaluated(self) -> Flows:
        """The flows of the test, and the extrapolated ones behind them."""
        if self.extrapolated is None:
            return self.test
        both = self.test, self.extrapolated
        return Flows(torch.cat([f.frames for f in both]), torch.cat([f.reynolds for f in both]))


@dataclass(frozen=True)
class Pairs:
    """Every training frame after one solver step, beside the frame that should have come out.

    Attributes:
        frames: `(pairs, 2, 2, height, width)`, stepped and wanted.
        reynolds: `(pairs,)`.
        rows: solver rows that it took, those that failed included.
        failed: solver rows that failed; their pairs are left out.
    """

    frames: Tensor
    reynolds: Tensor
    rows: int
    failed: int

    def draw(self, key: Key, count: int) -> tuple[Tensor, Tensor]:
        """Pairs drawn at random: `(count, 2, 2, height, width)` and Re `(count,)`."""
        places = torch.randint(len(self.frames), (count,), generator=key.generator(PAIRS))
        return self.frames[places], self.reynolds[places]


def reference_settings(config: Config) -> ReferenceSettings:
    """Return the settings that the reference is made from."""
    reynolds = (*config.train_reynolds, *config.validation_reynolds, *config.test_reynolds)
    return ReferenceSettings(
        reynolds=tuple(sorted(set(reynolds))),
        width=config.width,
        reference_width=config.reference_width,
        dt=config.dt,
        reference_dt=config.reference_dt,
        warm_up=config.warm_up,
        frames=config.frames,
    )


def load(config: Config, folder: Path, progress: Callable[[int, int], None] | None = None) -> WakeData:
    """Read the reference, or compute and keep it; see `simulators.wake_flow.reference` for errors."""
    settings = reference_settings(config)
    reference = load_or_compute(settings, folder, progress)
    extrapolated = None
    if config.extrapolated_reynolds:
        further = replace(settings, reynolds=config.extrapolated_reynolds)
        further_reference = load_or_compute(further, folder, progress)
        extrapolated = Flows(further_reference.frames, further_reference.reynolds).to(config.device)

    def flows(reynolds: tuple[float, ...]) -> Flows:
        places = [int((reference.reynolds - re).abs().argmin()) for re in reynolds]
        return Flows(reference.frames[places], reference.reynolds[places]).to(config.device)

    return WakeData(
        train=flows(config.train_reynolds),
        validation=flows(config.validation_reynolds),
        test=flows(config.test_reynolds),
        path=reference.path,
        reused=reference.reused,
        extrapolated=extrapolated,
    )


def before(flows: Flows) -> tuple[Tensor, Tensor]:
    """Each frame but the last of each flow `(frames, 2, height, width)`, and its Reynolds number."""
    return flows.frames[:, :-1].flatten(0, 1), flows.reynolds.repeat_interleave(flows.frames.shape[1] - 1)


def pairs(flows: Flows, stepped: Tensor) -> Pairs:
    """Pair the flows after one solver step with the reference frames at that time.

    Pairs that the solver lost are out.

    Raises:
        SolverError: it lost them all.
    """
    reynolds = before(flows)[1]
    frames = torch.stack([stepped, flows.frames[:, 1:].flatten(0, 1)], dim=1)
    alive = torch.isfinite(stepped).flatten(1).all(dim=1)
    if not alive.any():
        raise SolverError(
            f"The solver: expected a step from some reference frame, got none: all {len(alive)} rows failed. "
            "Step one frame by hand with failures='raise' to see why."
        )
    return Pairs(frames[alive], reynolds[alive], len(alive), int((~alive).sum()))


def mirrored(velocity: Tensor) -> Tensor:
    """Velocities `(..., 2, height, width)` as seen in a mirror along the stream; the wall's column stays."""
    across, along = velocity[..., 0, :, :], velocity[..., 1, :, :]
    # Left faces, the wall's first: face i goes to face width - i.
    turned = torch.cat([across[..., :1], -across[..., 1:].flip(-1)], dim=-1)
    return torch.stack([turned, along.flip(-1)], dim=-3)


def scales(flows: Flows, pairs: Pairs) -> Scales:
    """The scales of the corrector, from training data alone."""
    speed = flows.frames.square().sum(dim=2).sqrt()
    several = len(flows.reynolds) > 1
    return Scales(
        velocity=speed.std().item(),
        reynolds=(flows.reynolds.std() if several else flows.reynolds[0]).item(),
        correction=(pairs.frames[:, 1] - pairs.frames[:, 0]).std().item(),
    )
