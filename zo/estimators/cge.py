"""CGE: one query a coordinate (two if central), over all parameters or a sparse set of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox.checks import check_flag
from zo.draws import Key
from zo.errors import ConfigurationError
from zo.estimators.estimator import Estimator, check_mu
from zo.estimators.sparsity import Sparsity, drawn
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbations


@dataclass(frozen=True)
class CoordinateSteps(Perturbations):
    """Steps along single coordinates; with central differences all forward ones come first.

    Attributes:
        indices: `(coordinates,)` flat indices, ascending.
        steps: `(queries,)` signed steps; queries is one or two times coordinates.
        size: the size of the flat gradient.
    """

    indices: Tensor
    steps: Tensor
    size: int

    @property
    def queries(self) -> int:
        """The number of queries: one for each coordinate, two if central."""
        return len(self.steps)

    def chunk(self, start: int, stop: int) -> Coordinates:
        """Queries start to stop - 1."""
        moved = self.indices.repeat(len(self.steps) // len(self.indices))
        return Coordinates(moved[start:stop], self.steps[start:stop])

    def slopes(self) -> tuple[Tensor, ...]:
        """The query of each coordinate, or its two."""
        return (torch.arange(self.queries).view(-1, len(self.indices)).T,)


@dataclass(frozen=True)
class CGE(Estimator[CoordinateSteps]):
    """The coordinate-wise gradient estimator (CGE).

        forward   g = sum_i [l(theta + mu e_i) - l(theta)] / mu * e_i             error O(mu)
        central   g = sum_i [l(theta + mu e_i) - l(theta - mu e_i)] / 2 mu * e_i  error O(mu^2)

    The sum is over all coordinates, or over those of the sparse set S_t; elsewhere the gradient is zero
    (DeepZero, Chen et al., ICLR 2024, eq. 2). A coordinate whose query failed gets zero. Where one of its two
    queries failed, as at the edge of a box's domain, it gets the difference over the other.

    Args:
        mu: smoothing parameter, in the parameters' units.
        sparsity: the rule that chooses coordinates, step by step; None for all.
        central: whether each coordinate is moved in both directions, for two queries instead of one.

    Raises:
        ConfigurationError: a value is out of range; or, at a step, mu is lost in the rounding of a weight.
    """

    mu: float
    sparsity: Sparsity | None = None
    central: bool = False

    def __post_init__(self) -> None:
        """Check where it is written."""
        check_mu("CGE", self.mu)
        check_flag("CGE", "central", self.central)

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """Return the number of queries of a step: one for each coordinate, two if central."""
        count = parameters.size if self.sparsity is None else self.sparsity.count(parameters, step)
        return count * (2 if self.central else 1)

    def plan(self, parameters: Parameters, key: Key) -> CoordinateSteps:
        """The steps of one optimiser step; the weight's own floats can represent each of them."""
        indices = (
            torch.arange(parameters.size) if self.sparsity is None else drawn(self.sparsity, parameters, key)
        )
        steps = parameters.steps(indices, self.mu)
        if self.central:
            steps = torch.cat([steps, parameters.steps(indices, -self.mu)])
        if bool((steps == 0).any()):  # 0 / 0 would be a NaN in the gradient
            lost = indices[torch.nonzero(steps == 0).flatten() % len(indices)][:1]
            name = parameters.names[int(parameters.locate(lost)[0])]
            value = float(parameters.flat()[lost])
            raise ConfigurationError(
                f"CGE, mu: expected a step that moves every weight, got {self.mu!r}, which is "
                f"lost in the rounding of {name!r}, where a weight is {value:.3g}. Take a larger mu."
            )
        return CoordinateSteps(indices, steps, parameters.size)

    def reduce(self, planned: CoordinateSteps, differences: Tensor, valid: Tensor) -> Tensor:
        """Differences over steps, each at its coordinate."""
        slopes, valid = slopes_along(planned.steps, differences, valid, central=self.central)
        gradient = torch.zeros(planned.size, dtype=planned.steps.dtype)
        gradient[planned.indices] = slopes.to(gradient.dtype)
        return gradient


def slopes_along(
    steps: Tensor, differences: Tensor, valid: Tensor, *, central: bool
) -> tuple[Tensor, Tensor]:
    """Differences over steps; if central the first half of the queries went forward, the second back.

    Args:
        steps: `(queries, ...)`, signed.
        differences: `(queries, ...)`, against the base.
        valid: `(queries, ...)` bool, False where a query failed.
        central: whether each direction was taken both ways.

    Returns:
        Slopes `(directions, ...)` in float64, zero where no query is left; and bool, False there. Where one
        of two failed, as at the edge of a box's domain, the other side gives the slope.
    """
    steps, differences = torch.where(valid, steps.double(), 0.0), torch.where(valid, differences, 0.0)
    if central:
        half = len(steps) // 2
        steps, differences = steps[:half] - steps[half:], differences[:half] - differences[half:]
        valid = valid[:half] | valid[half:]
    return torch.where(valid, differences / steps, 0.0), valid
