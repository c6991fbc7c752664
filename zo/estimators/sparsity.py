"""Sparse sets: the coordinates that an estimator perturbs in each step, and when they are drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number
from zo.draws import SPARSITY, Key
from zo.errors import ConfigurationError
from zo.parameters import Parameters


@runtime_checkable
class Sparsity(Protocol):
    """A rule that gives the sparse set of each step."""

    def count(self, parameters: Parameters, step: int = 0) -> int:
        """Return the number of coordinates in the set of a step; called before the step runs."""
        ...

    def draw(self, parameters: Parameters, key: Key) -> Tensor:
        """The set at the key's step: `(count,)` int64, ascending, without repetition."""
        ...


def drawn(sparsity: Sparsity, parameters: Parameters, key: Key) -> Tensor:
    """The set at the key's step, after a check that it is one: what estimators call.

    Raises:
        ConfigurationError: it is empty, repeats itself, or leaves the parameters.
    """
    indices = sparsity.draw(parameters, key)
    count = len(indices)
    if (
        not count
        or bool((indices[1:] <= indices[:-1]).any())
        or indices[0] < 0
        or indices[-1] >= parameters.size
    ):
        raise ConfigurationError(
            f"{type(sparsity).__name__}: expected at step {key.step} a set of flat indices, ascending, in "
            f"[0, {parameters.size}), got {'an empty one' if not count else indices.tolist()[:8]}. "
            "An empty set would train nothing: lower the sparsity, or raise the ratios."
        )
    return indices


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

    def count(self, parameters: Parameters, step: int = 0) -> int:
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


@dataclass(frozen=True)
class LayerwiseCoordinates:
    """Random coordinates in each layer, uniformly, as many as its ratio says, drawn anew every k steps.

    Args:
        ratios: the fraction of each tensor that is perturbed, by name: `pruning.LayerRatios`, or any
            mapping; 1 keeps a layer dense. Names that are not among the parameters are passed over.
        every: steps between draws (DeepZero: an epoch's); None for a set that is drawn once.

    Raises:
        ConfigurationError: a value out of its range; or, at the first step, a parameter without a ratio.
    """

    ratios: Mapping[str, float]
    every: int | None = 1

    def __post_init__(self) -> None:
        """Check where it is written."""
        owner = "LayerwiseCoordinates"
        for name, ratio in self.ratios.items():
            check_number(
                owner,
                f"ratios[{name!r}]",
                ratio,
                least=0,
                most=1,
                mend="A ratio is the part that is kept: 1 - sparsity.",
            )
        if self.every is not None:
            check_count(owner, "every", self.every)

    def count(self, parameters: Parameters, step: int = 0) -> int:
        """Return the number of coordinates in the set, over all layers."""
        return sum(self._counts(parameters))

    def draw(self, parameters: Parameters, key: Key) -> Tensor:
        """The set of the key's step."""
        drawn_at = 0 if self.every is None else key.step - key.step % self.every
        # One generator for all layers: a layer's order depends on the layers before it, not on ratios.
        generator = key.at(drawn_at).generator(SPARSITY)
        layers = []
        counts = self._counts(parameters)
        for start, tensor, count in zip(parameters.starts, parameters.tensors, counts, strict=True):
            order = torch.randperm(tensor.numel(), generator=generator)
            layers.append(start + order[:count].sort().values)
        return torch.cat(layers)

    def _counts(self, parameters: Parameters) -> list[int]:
        missing = [name for name in parameters.names if name not in self.ratios]
        if missing:
            raise ConfigurationError(
                f"LayerwiseCoordinates, ratios: expected one for every parameter, got none for "
                f"{', '.join(missing)}. Score them too, list them as dense, or leave them out of parameters."
            )
        named = zip(parameters.names, parameters.tensors, strict=True)
        return [round(self.ratios[name] * tensor.numel()) for name, tensor in named]


@dataclass(frozen=True, eq=False)
class FixedCoordinates:
    """The same coordinates at every step, such as a pruning mask's.

    Args:
        indices: `(coordinates,)` int64, flat, in any order.

    Raises:
        ConfigurationError: no indices, or no whole numbers; at the first step, indices that repeat
            themselves or leave the parameters.
    """

    indices: Tensor

    def __post_init__(self) -> None:
        """Check where it is written."""
        got = type(self.indices).__name__
        if isinstance(self.indices, Tensor):
            got = f"{tuple(self.indices.shape)} {str(self.indices.dtype)[6:]}"
            if self.indices.ndim == 1 and self.indices.dtype == torch.int64 and len(self.indices):
                return
        raise ConfigurationError(
            f"FixedCoordinates, indices: expected a tensor (coordinates,) int64, at least one, got {got}. "
            "From a mask: torch.nonzero(mask).flatten()."
        )

    def count(self, parameters: Parameters, step: int = 0) -> int:
        """Return the number of indices."""
        return len(self.indices)

    def draw(self, parameters: Parameters, key: Key) -> Tensor:
        """The indices, ascending; the same at every step."""
        return self.indices.cpu().sort().values
