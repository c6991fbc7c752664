"""Which coordinates a sparse CGE perturbs: the set S_t and when it is drawn anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zo.draws import Key
from zo.errors import ConfigurationError
from zo.estimators.estimator import check_count
from zo.parameters import Parameters

SPARSITY = 1  # first word of the key's path for these draws; other draws of a step use others


class Sparsity(Protocol):
    """A rule that gives the sparse set of each step."""

    def count(self, parameters: Parameters) -> int:
        """How many coordinates the set has."""
        ...

    def draw(self, parameters: Parameters, key: Key) -> Tensor:
        """The set at the key's step: `(count,)` int64, ascending, without repetition."""
        ...


@dataclass(frozen=True)
class RandomCoordinates:
    """`size` coordinates, uniformly at random over all parameters, drawn anew every `every` steps.

    Raises:
        ConfigurationError: a value below one; or, at the first step, more coordinates than parameters.
    """

    size: int
    every: int = 1

    def __post_init__(self) -> None:
        """Check where it is written."""
        check_count("RandomCoordinates", "size", self.size)
        check_count("RandomCoordinates", "every", self.every)

    def count(self, parameters: Parameters) -> int:
        """`size`, if the parameters are that many."""
        if self.size > parameters.size:
            raise ConfigurationError(
                f"RandomCoordinates, size: expected at most the {parameters.size} parameters, "
                f"got {self.size}. "
                "Ask for fewer, or leave sparsity=None to perturb them all."
            )
        return self.size

    def draw(self, parameters: Parameters, key: Key) -> Tensor:
        """The set of the key's step."""
        count = self.count(parameters)
        generator = key.at(key.step - key.step % self.every).generator(SPARSITY)
        return torch.randperm(parameters.size, generator=generator)[:count].sort().values
