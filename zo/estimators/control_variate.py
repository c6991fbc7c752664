"""Control variate: random directions correct a surrogate gradient without its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zo.draws import Key
from zo.errors import ConfigurationError
from zo.estimators.estimator import Estimator
from zo.estimators.rge import BLOCK, RGE, RandomSteps
from zo.estimators.surrogate_filled import SurrogateSteps, surrogate_of
from zo.parameters import Parameters


@dataclass(frozen=True)
class ControlVariate(Estimator[SurrogateSteps[RandomSteps]]):
    """The random gradient estimator with a surrogate gradient s as its control variate.

        zo.ControlVariate(zo.RGE(mu=1e-3, q=8))

        g = s + (c/q) sum_i [D_i - <s, u_i>] u_i,    D_i the slope of the loss along u_i

    s is what stands in `.grad` before the step, and g replaces it; `SurrogateFilled` says how, and what
    it costs. g is unbiased for what `RGE` is unbiased for, the gradient of the smoothed
    loss (central or not), whatever s is; only the variance depends on it: the squared error
    is about d / q times |gradient - s|^2 in the place of |gradient|^2. So it takes a good surrogate and
    many directions: with a cosine of .99 and d / q = 100 the error is still larger than the gradient.

    A failed query leaves the mean.

    Args:
        directions: an `RGE` without a sparsity, which would leave s uncorrected outside its set.

    Raises:
        ConfigurationError: directions with a sparsity; or, at a step, no surrogate in `.grad`, or a mu that
            is lost in the rounding of the weights.
        TangentError: at a step, a surrogate that is not finite.
    """

    directions: RGE
    replaces_grad: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check where it is written."""
        if self.directions.sparsity is not None:
            raise ConfigurationError(
                "ControlVariate, directions: expected them without a sparsity, outside whose set s would "
                f"stay as it is, got {self.directions.sparsity!r}. For a gradient of some layers choose "
                "parameters; or take SurrogateFilled."
            )

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """Those of the directions; what the surrogate costs is not known here."""
        return self.directions.queries(parameters, step)

    def plan(self, parameters: Parameters, key: Key) -> SurrogateSteps[RandomSteps]:
        """The step's directions, and the surrogate that stands in `.grad`."""
        surrogate = surrogate_of("ControlVariate", parameters, key.step)
        return SurrogateSteps(self.directions.plan(parameters, key), surrogate)

    def reduce(self, planned: SurrogateSteps[RandomSteps], differences: Tensor, valid: Tensor) -> Tensor:
        """The surrogate, and RGE of what it leaves of the differences."""
        predicted = torch.empty(planned.queries, dtype=torch.float64)
        surrogate = planned.surrogate.double()
        for start in range(0, planned.queries, BLOCK):
            stop = min(start + BLOCK, planned.queries)
            predicted[start:stop] = planned.steps.chunk(start, stop).steps.double() @ surrogate
        left = self.directions.reduce(planned.steps, differences - predicted, valid)
        return planned.surrogate + left
