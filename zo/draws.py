"""Keyed random draws: the same (seed, step, ...) gives the same numbers, in any process and at any time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from blackbox.checks import check_count


@dataclass(frozen=True)
class Key:
    """What the draws of one optimiser step depend on.

    Draws are made on the CPU, so they do not depend on the device, and the global generators are
    neither read nor moved.

    Attributes:
        seed: the run's seed, >= 0.
        step: the optimiser step, >= 0.
    """

    seed: int
    step: int = 0

    def __post_init__(self) -> None:
        """Refuse what a seed sequence cannot take."""
        for name in ("seed", "step"):
            check_count("Key", name, getattr(self, name), least=0)

    def at(self, step: int) -> Key:
        """The key of another step of the same run."""
        return replace(self, step=step)

    def generator(self, *path: int) -> torch.Generator:
        """A fresh CPU generator for (seed, step, *path); `path` distinguishes a step's draws."""
        # As a spawn key: in the entropy itself trailing zeros would count for nothing.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(self.step, *path))
        words = sequence.generate_state(1, np.uint64)
        # torch's CPU generator keeps 32 bits of a seed: of a run's 2e6 generators some 500 pairs are equal,
        # which is harmless, since almost surely their steps differ.
        return torch.Generator().manual_seed(int(words[0]) >> 1)
