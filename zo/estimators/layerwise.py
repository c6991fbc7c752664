"""Coordinates drawn from layer ratios: at random inside each layer; dynamic, fixed, or ever sparser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blackbox.checks import check_choice, check_count
from zo.draws import Key
from zo.errors import ConfigurationError
from zo.estimators.estimator import check_sparsity
from zo.estimators.sparsity import SPARSITY
from zo.parameters import Parameters

EXPONENTS = {"constant": 0, "linear": 1, "cubic": 3}


@dataclass(frozen=True)
class LayerwiseCoordinates:
    """In each layer as many coordinates as its ratio says, uniformly at random, anew every k steps.

    With a schedule the sets thin out to the ratios r over the first `steps` steps t:

        r_t = r + (max(r, 1 - start) - r) (1 - t / steps)^n,   n = 1 linear, 3 cubic

    (cubic: Zhu and Gupta 2017, eq. 1, layer by layer). Between two draws, and always with a fixed
    draw, a later set is part of an earlier one.

    Args:
        ratios: the fraction of each tensor that is perturbed, by name: `pruning.LayerRatios`, or any
            mapping; 1 keeps a layer dense. Names that are not among the parameters are passed over.
        every: steps between draws (DeepZero: an epoch's); None for a set that is drawn once.
        schedule: "constant", "linear" or "cubic".
        steps: length of the schedule; None if constant.
        start: sparsity, in [0, 1), that the schedule starts from.

    Raises:
        ConfigurationError: a value out of its range; or, at the first step, a parameter without a ratio.
    """

    ratios: Mapping[str, float]
    every: int | None = 1
    schedule: Literal["constant", "linear", "cubic"] = "constant"
    steps: int | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        """Check where it is written."""
        owner = "LayerwiseCoordinates"
        for name, ratio in self.ratios.items():
            if not 0 <= ratio <= 1:
                raise ConfigurationError(
                    f"{owner}, ratios: expected fractions in [0, 1], got {ratio!r} for {name!r}. "
                    "A ratio is the part that is kept: 1 - sparsity."
                )
        if self.every is not None:
            check_count(owner, "every", self.every)
        check_choice(owner, "schedule", self.schedule, tuple(EXPONENTS))
        check_sparsity(owner, "start", self.start)
        if (self.schedule == "constant") != (self.steps is None):
            raise ConfigurationError(
                f"{owner}, steps: expected a length for a linear or cubic schedule and None for a constant "
                f"one, got {self.steps!r} for {self.schedule!r}. Give both, or neither."
            )
        if self.steps is not None:
            check_count(owner, "steps", self.steps)

    def count(self, parameters: Parameters, step: int = 0) -> int:
        """Over all layers, at a step of the schedule."""
        return sum(self._counts(parameters, step))

    def draw(self, parameters: Parameters, key: Key) -> Tensor:
        """The set of the key's step."""
        drawn_at = 0 if self.every is None else key.step - key.step % self.every
        # One generator for all layers: a layer's own order hangs on the layers before it, not on ratios.
        generator = key.at(drawn_at).generator(SPARSITY)
        layers = []
        counts = self._counts(parameters, key.step)
        for start, tensor, count in zip(parameters.starts, parameters.tensors, counts, strict=True):
            order = torch.randperm(tensor.numel(), generator=generator)
            layers.append(start + order[:count].sort().values)
        return torch.cat(layers)

    def _counts(self, parameters: Parameters, step: int) -> list[int]:
        missing = [name for name in parameters.names if name not in self.ratios]
        if missing:
            raise ConfigurationError(
                f"LayerwiseCoordinates, ratios: expected one for every parameter, got none for "
                f"{', '.join(missing)}. Score them too, list them as dense, or leave them out of parameters."
            )
        left = 0.0
        if self.steps is not None:
            left = max(0.0, 1 - step / self.steps) ** EXPONENTS[self.schedule]
        counts = []
        for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
            ratio = self.ratios[name]
            ratio += (max(ratio, 1 - self.start) - ratio) * left
            counts.append(round(ratio * tensor.numel()))
        return counts
