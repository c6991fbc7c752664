"""The settings of the wake-flow task and its presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from tasks.errors import ConfigurationError

DESCRIPTION = (
    "A network corrects a coarse solver of the wake behind a cylinder, step by step. Compared are the "
    "solver alone (SRC), a network trained without the solver in the loop (NON), and in the loop: with "
    "the solver's own derivative (FO-SOL), and from function values alone: with gradients of the weights "
    "(ZO-SOL), or of a larger network with learned tangents of the solver (TAN-SOL)."
)
RATIOS = ("uniform", "zo-grasp", "zo-snip", "magnitude")
METHODS = ("SRC", "NON", "FO-SOL", "ZO-SOL", "NON large", "FO-SOL large", "TAN-SOL")
SMALLEST_WIDTH = 8  # these two as in simulators.wake_flow.geometry, whose import takes seconds
LARGEST_REYNOLDS = 1e5


@dataclass(frozen=True)
class Config:
    """Settings of a run. Lengths, times and speeds are in units in which inflow speed is 1, D is 20."""

    width: int = 16
    """Cells across of the coarse solver (the source); it has twice as many along."""
    reference_width: int = 64
    """Cells across of the reference, a multiple of `width`; the published one has 128."""
    dt: float = 1.0
    """Time step of the source."""
    reference_dt: float = 0.5
    """Time step of the reference."""
    warm_up: int = 500
    """Reference steps before the first frame, so that vortices shed; the published one has 1000."""
    frames: int = 261
    """Frames kept of each simulation, `dt` apart; the published set has 500."""
    train_reynolds: tuple[float, ...] = (120.0, 240.0, 480.0, 960.0)
    """Re_D = U D / nu of the flows that are trained on."""
    validation_reynolds: tuple[float, ...] = (200.0, 580.0)
    """Re_D by which weights are chosen."""
    test_reynolds: tuple[float, ...] = (170.0, 340.0, 680.0)
    """Re_D for the last line; never trained on, never chosen by."""

    channels: tuple[int, ...] = (8,)
    """Hidden channels of the corrector, 5 x 5 convolutions: (8,) make 1,010 weights."""
    large_channels: tuple[int, ...] = (32, 32)
    """Of the larger one, that TAN-SOL trains: (32, 32) make 29,666 weights."""
    unroll: int = 8
    """Solver steps in a loss; the paper: 16 and 32."""
    batch: int = 4
    """Windows of reference data in a step."""

    non_steps: int = 800
    """Optimiser steps of NON, one solver step deep: of 100, 200 ... 1,600 the fewest with the
    lowest validation error (`benchmarks.non_budget`)."""
    non_learning_rate: float = 0.002
    """Of Adam, at the start; it falls to zero along a cosine."""
    non_batch: int = 32
    """Pairs of frames in a step of NON."""
    fo_steps: int = 300
    """Optimiser steps of FO-SOL, from NON's weights; as many as ZO-SOL's, on the same batches."""
    fo_learning_rate: float = 0.002
    """Of Adam, at the start; it falls to zero along a cosine."""
    zo_steps: int = 300
    """Optimiser steps of ZO-SOL, from NON's weights."""
    zo_learning_rate: float = 0.002
    """Of Adam, at the start; it falls to zero along a cosine."""
    coordinates: int = 96
    """Coordinates in a step's sparse set, drawn anew every step."""
    ratios: str = "uniform"
    """How they spread over the layers: "uniform", alike, or with the layer ratios that "zo-grasp", "zo-snip"
    or "magnitude" give the network that ZO-SOL starts from."""
    mu: float = 1e-4
    """Smoothing parameter of the forward differences: 1e-2 is too large here, 1e-5 lost in rounding."""
    large_steps: int = 150
    """Optimiser steps of TAN-SOL and of FO-SOL with the larger network, from its own NON's weights."""
    large_learning_rate: float = 0.001
    """Of Adam, at the start; it falls to zero along a cosine."""
    probes: int = 2
    """Moved copies of the network that run beside it in a step of TAN-SOL."""
    probe_mu: float = 1e-3
    """Standard deviation by which a probe moves each weight."""

    horizon: int = 200
    """Steps of the rollouts that validate and test."""
    test_starts: int = 3
    """Rollouts for each test Re_D, from evenly spaced frames."""
    validation_starts: int = 2
    """Rollouts for each validation Re_D."""
    validate_every: int = 50
    """Optimiser steps between validations."""
    checkpoint_every: int = 25
    """Optimiser steps between checkpoints."""
    threads: int = 1
    """Of torch on the CPU. Two are up to twice as fast on idle cores, and ten times slower where another
    process wants one of them. Results are equal to the bit for equal numbers of threads."""

    def __post_init__(self) -> None:
        """Refuse what would fail, or mislead, only after the reference has been computed."""
        counts = (
            "unroll batch non_steps non_batch fo_steps zo_steps coordinates large_steps probes horizon "
            "test_starts validation_starts validate_every checkpoint_every threads"
        )
        for name in counts.split():
            if not getattr(self, name) >= 1:  # "not", here and below: every comparison with NaN is false
                self._refuse(name, "a whole number >= 1")
        rates = "non_learning_rate fo_learning_rate zo_learning_rate large_learning_rate"
        for name in ("channels", "large_channels"):
            if not (getattr(self, name) and all(count >= 1 for count in getattr(self, name))):
                self._refuse(name, "whole numbers >= 1, one for each hidden layer")
        for name in f"dt reference_dt {rates} mu probe_mu".split():
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "a finite number > 0")
        self._check_reference()
        self._check_reynolds()
        if not self.frames > max(self.horizon, self.unroll):
            self._refuse("frames", f"more than horizon {self.horizon} and unroll {self.unroll}")
        if self.ratios not in RATIOS:
            self._refuse("ratios", f"one of {', '.join(RATIOS)}")
        widths = (3, *self.channels, 2)  # 5 x 5 layers, 3 channels in, 2 out
        weights = sum(25 * a * b + b for a, b in pairwise(widths))
        if self.coordinates > weights:
            self._refuse("coordinates", f"at most the {weights} weights of the network")

    def _check_reference(self) -> None:
        if not self.width >= SMALLEST_WIDTH:
            self._refuse("width", f"at least {SMALLEST_WIDTH} cells, or no cell lies in the cylinder")
        if not (self.reference_width >= self.width and self.reference_width % self.width == 0):
            self._refuse("reference_width", f"a multiple of width {self.width}")
        ratio = self.dt / self.reference_dt
        if not (0.5 < ratio < math.inf and abs(ratio - round(ratio)) < 1e-9):
            self._refuse("reference_dt", f"a whole fraction of dt {self.dt:g}")
        if not self.warm_up >= 0:
            self._refuse("warm_up", "a whole number >= 0")

    def _check_reynolds(self) -> None:
        for name in ("train_reynolds", "validation_reynolds", "test_reynolds"):
            numbers = getattr(self, name)
            if not numbers:
                self._refuse(name, "at least one Reynolds number")
            if not all(0 < number <= LARGEST_REYNOLDS for number in numbers):
                self._refuse(name, f"finite numbers > 0 and <= {LARGEST_REYNOLDS:g}")
            if len(set(numbers)) < len(numbers):
                self._refuse(name, "every number once")
        if set(self.validation_reynolds) & set(self.train_reynolds):
            self._refuse("validation_reynolds", "numbers that are not trained on")
        if set(self.test_reynolds) & {*self.train_reynolds, *self.validation_reynolds}:
            self._refuse("test_reynolds", "numbers that are neither trained on nor used for validation")

    def _refuse(self, name: str, expected: str) -> None:
        raise ConfigurationError(
            f"wake-flow, {name}: expected {expected}, got {getattr(self, name)!r}. "
            f"Set it with --config.{name.replace('_', '-')}."
        )


PRESETS = {
    "demo": Config(),
}
