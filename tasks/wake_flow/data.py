"""The reference flows as training windows, pairs and rollout starts, one set for each purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simulators.wake_flow.reference import ReferenceSettings, load_or_compute
from tasks.wake_flow.config import Config
from zo import Key

WINDOWS = 101  # first word of the key's path for draws of training data; `zo` uses small ones


@dataclass(frozen=True)
class Flows:
    """Reference flows at some Reynolds numbers.

    Attributes:
        frames: `(flows, frames, 2, height, width)`, velocity on the staggered source grid.
        reynolds: `(flows,)`.
    """

    frames: Tensor
    reynolds: Tensor

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
    """The three sets, and the scales that normalise what goes into the network.

    Attributes:
        train, validation, test: flows.
        velocity_scale: standard deviation of the speed over the training flows.
        reynolds_scale: standard deviation of the training Reynolds numbers.
        path: the reference file.
        reused: whether it was there already.
    """

    train: Flows
    validation: Flows
    test: Flows
    velocity_scale: float
    reynolds_scale: float
    path: Path
    reused: bool


def reference_settings(config: Config) -> ReferenceSettings:
    """What the reference is made from."""
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
    reference = load_or_compute(reference_settings(config), folder, progress)

    def flows(reynolds: tuple[float, ...]) -> Flows:
        chosen = [int((reference.reynolds - re).abs().argmin()) for re in reynolds]
        return Flows(reference.frames[chosen], reference.reynolds[chosen])

    train = flows(config.train_reynolds)
    speed = train.frames.square().sum(dim=2).sqrt()
    several = len(train.reynolds) > 1
    return WakeData(
        train=train,
        validation=flows(config.validation_reynolds),
        test=flows(config.test_reynolds),
        velocity_scale=speed.std().item(),
        reynolds_scale=train.reynolds.std().item() if several else train.reynolds.item(),
        path=reference.path,
        reused=reference.reused,
    )
