"""Queries of many rows at once, each row with steps of its own: the plan, and what it is reduced by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from zo.box_gradient.row_rge import RowRGE
from zo.draws import Key
from zo.errors import ConfigurationError
from zo.estimators.cge import CGE

ROW_DIRECTIONS = 3  # first word of the key's path for these draws; other draws use others


class RowSteps(ABC):
    """The queries of one call. All rows have the same number of them.

    Attributes:
        queries: how many a row.
    """

    queries: int

    @abstractmethod
    def displaced(self, query: Tensor, row: Tensor) -> Tensor:
        """The rows `row` as their queries `query` move them: `(n,)` and `(n,)` to `(n, size)`."""

    @abstractmethod
    def reduce(self, differences: Tensor, valid: Tensor) -> Tensor:
        """The gradient of every row.

        Args:
            differences: `(queries, rows)` float64, the scalar of each query minus the base's.
            valid: `(queries, rows)` bool, False where a query failed; its difference means nothing.

        Returns:
            `(rows, size)` float64.
        """


@dataclass(frozen=True)
class CoordinateRowSteps(RowSteps):
    """CGE: steps along single coordinates, all forward ones first. A failed one leaves a zero.

    Attributes:
        values: `(rows, size)`, the base.
        steps: `(sides, rows, size)`, signed; one side forward, two central.
    """

    values: Tensor
    steps: Tensor

    @property
    def queries(self) -> int:
        """One a coordinate, or two."""
        return self.steps.shape[0] * self.steps.shape[2]

    def displaced(self, query: Tensor, row: Tensor) -> Tensor:
        """One number of each row moved."""
        size = self.values.shape[1]
        side, coordinate = query // size, query % size
        moved = self.values[row]
        moved[torch.arange(len(row), device=row.device), coordinate] += self.steps[side, row, coordinate]
        return moved

    def reduce(self, differences: Tensor, valid: Tensor) -> Tensor:
        """Differences over steps."""
        differences, valid = (part.view(-1, *self.values.T.shape) for part in (differences, valid))
        steps = self.steps.double()
        if len(steps) == 2:
            differences, steps = differences[:1] - differences[1:], steps[:1] - steps[1:]
        return torch.where(valid.all(dim=0), differences[0] / steps[0].T, 0.0).T


@dataclass(frozen=True)
class DirectionRowSteps(RowSteps):
    """RGE: steps along directions, all forward ones first. The mean is over those without a failure.

    Attributes:
        values: `(rows, size)`, the base.
        directions: `(q, rows, size)`, without mu.
        mu: smoothing parameter.
        factor: c of the directions.
        antithetic: whether each direction is also taken backward.
    """

    values: Tensor
    directions: Tensor
    mu: float
    factor: int
    antithetic: bool

    @property
    def queries(self) -> int:
        """One a direction, or two."""
        return len(self.directions) * (2 if self.antithetic else 1)

    def displaced(self, query: Tensor, row: Tensor) -> Tensor:
        """Each row moved along its direction."""
        q = len(self.directions)
        sign = torch.where(query < q, 1.0, -1.0).to(self.values.dtype)
        return self.values[row] + (self.mu * sign)[:, None] * self.directions[query % q, row]

    def reduce(self, differences: Tensor, valid: Tensor) -> Tensor:
        """Slopes times directions, averaged."""
        slopes = differences / self.mu
        if self.antithetic:
            q = len(self.directions)
            slopes, valid = (slopes[:q] - slopes[q:]) / 2, valid[:q] & valid[q:]
        kept = valid.double().sum(dim=0).clamp(min=1)  # of integers, the quotient would be float32
        weights = torch.where(valid, slopes, 0.0) * (self.factor / kept)
        return torch.einsum("qr,qrs->rs", weights, self.directions.double())


def plan_rows(estimator: RowRGE | CGE, inputs: list[Tensor], alive: Tensor, seed: int, call: int) -> RowSteps:
    """The queries of one call for the rows that are alive.

    Args:
        estimator: what to plan.
        inputs: the perturbed inputs, `(rows, *shape)` each.
        alive: `(n,)`, which rows.
        seed: of the run.
        call: number of the call; draws hang on (seed, call) and the shapes, not on who is alive.

    Raises:
        ConfigurationError: mu is lost in the rounding of the inputs.
    """
    # The widest dtype holds them all exactly; a float32 input is cast back without loss.
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in inputs) else torch.float32
    flat = [tensor[alive].reshape(len(alive), -1) for tensor in inputs]
    values = torch.cat([part.to(dtype) for part in flat], dim=1)
    if isinstance(estimator, RowRGE):
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in inputs)
        generator = Key(seed, call).generator(ROW_DIRECTIONS)
        directions, factor = estimator.draw(len(inputs[0]), shapes, dtype, generator, call)
        own = directions.to(values.device)[:, alive]
        for moved, part in zip(own.split([part.shape[1] for part in flat], dim=2), flat, strict=True):
            _refuse_lost_directions(estimator.mu, moved, part)
        return DirectionRowSteps(values, own, estimator.mu, factor, estimator.central)
    signed = [estimator.mu, -estimator.mu] if estimator.central else [estimator.mu]
    # (z + mu) - z in the input's own floats is what it really moves by.
    steps = torch.stack([torch.cat([((p + mu) - p).to(dtype) for p in flat], dim=1) for mu in signed])
    if (steps == 0).any():  # else 0 / 0: a gradient of NaN
        largest = float(values[(steps == 0).any(dim=0)].abs().max())
        raise ConfigurationError(
            f"CGE, mu: expected a step that moves every input number, got {estimator.mu}, which "
            f"is lost in rounding beside a number of {largest:.3g} in {str(dtype)[6:]}. Take a larger mu, "
            "float64, or inputs of order one."
        )
    return CoordinateRowSteps(values, steps)


def _refuse_lost_directions(mu: float, directions: Tensor, values: Tensor) -> None:
    """Below a unit in the last place of a row its queries are the base, and its gradient too small."""
    entries = mu * directions.square().mean(dim=(0, 2)).sqrt()
    typical = values.square().mean(dim=1).sqrt()
    lost = torch.nonzero(entries < torch.finfo(values.dtype).eps * typical).flatten()
    if len(lost):
        raise ConfigurationError(
            f"differentiable, mu: expected steps above the rounding of the inputs, got entries of about "
            f"{float(entries[lost[0]]):.1e} for a row of {str(values.dtype)[6:]} whose numbers are about "
            f"{float(typical[lost[0]]):.1e}. Take a larger mu, float64, or inputs of order one."
        )
