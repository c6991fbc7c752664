"""Hybrid: CGE on a few coordinates, RGE on all others, one base evaluation for both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zo.draws import Key
from zo.errors import ConfigurationError
from zo.estimators.cge import CGE, CoordinateSteps
from zo.estimators.estimator import Estimator
from zo.estimators.rge import RGE, RandomSteps
from zo.estimators.sparsity import Complement
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Directions, Perturbation, Perturbations


@dataclass(frozen=True)
class HybridSteps(Perturbations):
    """The queries of the coordinates, then those of the directions."""

    coordinates: CoordinateSteps
    directions: RandomSteps

    @property
    def queries(self) -> int:
        """Of both."""
        return self.coordinates.queries + self.directions.queries

    def chunk(self, start: int, stop: int) -> Perturbation:
        """Queries start to stop - 1; a chunk that holds both kinds comes as directions."""
        border = self.coordinates.queries
        if stop <= border:
            return self.coordinates.chunk(start, stop)
        directions = self.directions.chunk(max(0, start - border), stop - border)
        if start >= border:
            return directions
        single = self.coordinates.chunk(start, border)
        return Directions(torch.cat([_dense(single, self.coordinates.size), directions.steps]))

    def slopes(self) -> tuple[Tensor, ...]:
        """Those of the coordinates, and those of the directions."""
        border = self.coordinates.queries
        return (*self.coordinates.slopes(), *(border + numbers for numbers in self.directions.slopes()))


@dataclass(frozen=True)
class Hybrid(Estimator[HybridSteps]):
    """The coordinate-wise estimator on a set, and the random one on all other coordinates.

        zo.Hybrid(zo.CGE(1e-3, sparsity), zo.RGE(1e-3, q=16))

    On the set the error is that of CGE, and no direction moves it. On the other d - |S| coordinates g is that
    of RGE: unbiased for the gradient of the smoothed loss, with a squared error of about (d - |S|) / q times
    the squared gradient there. The queries are those of the coordinates plus those of the directions, so they
    grow less than linearly with the number of weights if set and q are small. Put the coordinates with most
    of the gradient into the set.

    Args:
        coordinates: a `CGE` with a sparsity, which gives the set.
        directions: an `RGE` without a sparsity: it gets the complement.

    Raises:
        ConfigurationError: either has the sparsity that the other should have; or, at the first step, the
            set holds all parameters.
    """

    coordinates: CGE
    directions: RGE

    def __post_init__(self) -> None:
        """Check where it is written."""
        if self.coordinates.sparsity is None or self.directions.sparsity is not None:
            raise ConfigurationError(
                "Hybrid: expected coordinates with a sparsity and directions without one, got "
                f"{self.coordinates.sparsity!r} and {self.directions.sparsity!r}. "
                "The directions take all coordinates outside the set."
            )

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """Of both."""
        return self.coordinates.queries(parameters, step) + self.directions.queries(parameters, step)

    def plan(self, parameters: Parameters, key: Key) -> HybridSteps:
        """The set's steps, and directions on its complement."""
        coordinates = self.coordinates.plan(parameters, key)
        assert self.coordinates.sparsity is not None  # since __post_init__
        rest = replace(self.directions, sparsity=Complement(self.coordinates.sparsity))
        return HybridSteps(coordinates, rest.plan(parameters, key))

    def reduce(self, planned: HybridSteps, differences: Tensor, valid: Tensor) -> Tensor:
        """The sum of two gradients that have no coordinate in common."""
        border = planned.coordinates.queries
        on_set = self.coordinates.reduce(planned.coordinates, differences[:border], valid[:border])
        return on_set + self.directions.reduce(planned.directions, differences[border:], valid[border:])


def _dense(coordinates: Coordinates, size: int) -> Tensor:
    steps = torch.zeros(len(coordinates), size, dtype=coordinates.steps.dtype)
    steps[torch.arange(len(coordinates)), coordinates.indices] = coordinates.steps
    return steps
