"""Keyed random draws: the same (seed, step, ...) gives the same numbers, in any process and at any time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from blackbox.checks import check_count

# What is drawn: the first number of a generator's path, so that no two draws of a step are equal. Problems of
# `tasks` have some from 101 to 299, its batches an empty path; what users write has 1,000 and more.
SPARSITY = 1  # sets of coordinates
DIRECTIONS = 2  # of RGE
PRUNING = 3  # scores at initialization
ROW_DIRECTIONS = 3  # at a box's inputs, by call; pruning is over before the first
DRAWN = 5  # the query of a step that is evaluated by `loop` too
AGAIN = 6  # slopes that are asked again over half of mu
REPLAYED = 302  # rows of recorded windows, by the step in which the newest was recorded
UNASKED = 305  # rows of recorded windows that a surrogate is asked about, by the newest's step and number
STUDENT = 302  # rows that a student learns from, by its seed and step of learning
DITHER = 304  # of inputs of boxes, by call and input
LEARNING = 303  # rows that a network learns from, by its seed and step of learning


@dataclass(frozen=True)
class Key:
    """The seed and step that determine the draws of one optimiser step.

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
        """A fresh CPU generator for (seed, step, *path).

        Args:
            *path: distinguishes the draws of a step: what is drawn, and perhaps which of several. First
                numbers below 1,000 are this library's, whose batches are drawn with an empty path: an
                estimator or a problem of your own takes 1,000 or more.
        """
        # As a spawn key: in the entropy itself trailing zeros would count for nothing.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(self.step, *path))
        words = sequence.generate_state(1, np.uint64)
        # torch's CPU generator keeps 32 bits of a seed: of a run's 2e6 generators some 500 pairs are equal,
        # which is harmless, since almost surely their steps differ.
        return torch.Generator().manual_seed(int(words[0]) >> 1)
