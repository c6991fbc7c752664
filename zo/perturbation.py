"""Displacements of the flat parameter vector: coordinates with steps, or whole directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """One coordinate a query: `parameters[indices[p]] += steps[p]` is the p-th variant.

    Attributes:
        indices: the coordinate of each query, `(queries,)` int64, flat.
        steps: `(queries,)`, signed, in the parameter's units.
    """

    indices: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> Coordinates:
        """Queries start to stop - 1."""
        return Coordinates(self.indices[start:stop], self.steps[start:stop])


@dataclass(frozen=True)
class Directions:
    """One direction a query: `parameters += steps[p]` is the p-th variant.

    Attributes:
        steps: `(queries, size)`, mu included.
    """

    steps: Tensor

    def __len__(self) -> int:
        return len(self.steps)

    def part(self, start: int, stop: int) -> Directions:
        """Queries start to stop - 1."""
        return Directions(self.steps[start:stop])


Perturbation = Coordinates | Directions


class Perturbations(ABC):
    """All the queries of one step, in a fixed order; evaluators ask for them a chunk at a time."""

    @property
    @abstractmethod
    def queries(self) -> int:
        """The number of perturbed objectives that the step will evaluate, without the base."""

    @abstractmethod
    def chunk(self, start: int, stop: int) -> Perturbation:
        """Queries start to stop - 1; the same whatever chunks are asked for, and in whatever order."""

    def slopes(self) -> tuple[Tensor, ...]:
        """Group the queries that give one slope together, for each kind: `(slopes, queries of one)` int64.

        Two queries of a slope go opposite ways, as in central differences. By default each query gives a
        slope of its own, and all are of one kind. A check repeats some over half of mu, kind by kind.
        """
        return (torch.arange(self.queries)[:, None],)
