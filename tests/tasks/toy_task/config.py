"""Settings of the toy task."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Network:
    width: int = 4
    """Units of the hidden layer."""


@dataclass(frozen=True)
class Config:
    train_steps: int = 12
    """Optimiser steps of each method."""
    learning_rate: float = 0.05
    """Of Adam."""
    pause: float = 0.0
    """Seconds that each step waits, so that a test can interrupt it."""
    fail_at: int | None = None
    """Step from which on the loss is NaN."""
    fault: str | None = None
    """Kind of error that the first step raises."""
    sizes: tuple[int, ...] = (1, 2)
    """Not used; a tuple that has to survive JSON."""
    network: Network = field(default_factory=Network)
    """The network."""


PRESETS = {"demo": Config(), "small": Config(train_steps=20, network=Network(width=8))}
DESCRIPTION = "Fit a line through a black box."
