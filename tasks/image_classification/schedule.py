"""The learning rate of a step: a linear warm-up, then a cosine to zero; it depends on the step alone."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def learning_rate(highest: float, step: int, steps: int, warm_up: int) -> float:
    """Of optimiser step `step` (from 0): up to `highest` over `warm_up` steps, then down along a cosine."""
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """In all of its groups."""
    for group in optimizer.param_groups:
        group["lr"] = value
