"""An estimator as a user may write it whose plan has queries of both kinds: coordinates, then directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import zo
from zo.estimators import Coordinates, Directions, Estimator, Key, Parameters, Perturbations


@dataclass(frozen=True)
class BothSteps(Perturbations):
    coordinates: Any
    directions: Any

    @property
    def queries(self) -> int:
        return self.coordinates.queries + self.directions.queries

    def chunk(self, start: int, stop: int) -> Coordinates | Directions:
        """A chunk that holds both kinds comes as directions."""
        border = self.coordinates.queries
        if stop <= border:
            return self.coordinates.chunk(start, stop)
        directions = self.directions.chunk(max(0, start - border), stop - border)
        if start >= border:
            return directions
        single = self.coordinates.chunk(start, border)
        steps = torch.zeros(len(single), self.coordinates.size, dtype=single.steps.dtype)
        steps[torch.arange(len(single)), single.indices] = single.steps
        return Directions(torch.cat([steps, directions.steps]))

    def slopes(self) -> tuple[Tensor, ...]:
        border = self.coordinates.queries
        return (*self.coordinates.slopes(), *(border + numbers for numbers in self.directions.slopes()))


@dataclass(frozen=True)
class Both(Estimator[BothSteps]):
    """The sum of two gradients."""

    coordinates: zo.CGE
    directions: zo.RGE

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        return self.coordinates.queries(parameters, step) + self.directions.queries(parameters, step)

    def plan(self, parameters: Parameters, key: Key) -> BothSteps:
        return BothSteps(self.coordinates.plan(parameters, key), self.directions.plan(parameters, key))

    def reduce(self, planned: BothSteps, differences: Tensor, valid: Tensor) -> Tensor:
        border = planned.coordinates.queries
        on_set = self.coordinates.reduce(planned.coordinates, differences[:border], valid[:border])
        return on_set + self.directions.reduce(planned.directions, differences[border:], valid[border:])
