"""Sparse CGE around a surrogate gradient: it says where to measure, and fills what was not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from blackbox.checks import check_count, check_flag
from zo.draws import Key
from zo.errors import ConfigurationError, TangentError
from zo.estimators.cge import CGE, CoordinateSteps
from zo.estimators.estimator import Estimator, check_mu
from zo.estimators.sparsity import FixedCoordinates
from zo.parameters import Parameters
from zo.perturbation import Perturbation, Perturbations

Steps = TypeVar("Steps", bound=Perturbations)

IMPORTANCE = 4  # first word of the key's path for these draws
UNIFORM = 0.2  # of the surrogate's own weight, shared by all: what it thinks zero is measured now and then


@dataclass(frozen=True)
class SurrogateSteps(Perturbations, Generic[Steps]):
    """The queries of another estimator, and the surrogate `(size,)` that its gradient is joined with."""

    steps: Steps
    surrogate: Tensor

    @property
    def queries(self) -> int:
        """Those of the steps."""
        return self.steps.queries

    def chunk(self, start: int, stop: int) -> Perturbation:
        """Queries start to stop - 1."""
        return self.steps.chunk(start, stop)


@dataclass(frozen=True)
class SurrogateFilled(Estimator[SurrogateSteps[CoordinateSteps]]):
    """Importance-sampled, surrogate-filled sparse CGE.

        gradient = zo.LossGradient(network, objective, zo.SurrogateFilled(mu=1e-3, coordinates=96))
        for batch in loader:
            optimizer.zero_grad()
            surrogate.backward(batch)      # such as a TangentGradient: fills .grad with s
            gradient.backward(batch)       # .grad is now g
            optimizer.step()

    The surrogate s is the content of `.grad`, wherever it comes from: a `TangentGradient`, autograd through a
    coarse solver or, if `.grad` is not zeroed, the last step's gradient. It is replaced:

        g_i = measured      i in S
        g_i = alpha s_i     elsewhere,      alpha = <g_S, s_S> / <s_S, s_S>

    S has `coordinates` distinct coordinates, drawn anew in every step one after another, each with
    probability

        p_i = (|s_i| / sum_j |s_j| + 0.2 / d) / 1.2

    among those that are left, with d the number of weights. The scale of the surrogate does not matter,
    neither for the draw nor for g. g is biased as far as s points elsewhere; `ControlVariate` is not.

    A coordinate with a failed query gets alpha s_i, and does not contribute to alpha. If s is zero on all of
    S that did not fail, alpha is 0, and g is that of sparse CGE. If s is zero everywhere, S is uniform.

    Each of the two gradients has its own counts and state: the queries of a step are the sum of both, and
    each evaluates the base, which updates buffers (running statistics) twice.

    Args:
        mu: smoothing parameter, in the parameters' units.
        coordinates: how many are measured in a step.
        central: whether each coordinate is moved in both directions, for two queries instead of one.

    Raises:
        ConfigurationError: a value is out of range; or, at a step, there is no surrogate in `.grad`, there
            are more coordinates than parameters, or mu is lost in the rounding of a weight.
        TangentError: at a step, the surrogate is not finite.
    """

    mu: float
    coordinates: int
    central: bool = False
    replaces_grad: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check where it is written."""
        check_mu("SurrogateFilled", self.mu)
        check_count("SurrogateFilled", "coordinates", self.coordinates)
        check_flag("SurrogateFilled", "central", self.central)

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """Coordinates, twice if central; the cost of the surrogate is not known here."""
        if self.coordinates > parameters.size:
            raise ConfigurationError(
                f"SurrogateFilled, coordinates: expected at most the {parameters.size} parameters, got "
                f"{self.coordinates}. Ask for fewer; to measure all take CGE, without a surrogate."
            )
        return self.coordinates * (2 if self.central else 1)

    def plan(self, parameters: Parameters, key: Key) -> SurrogateSteps[CoordinateSteps]:
        """Draw S by the surrogate in `.grad`."""
        self.queries(parameters)  # refuses too many
        surrogate = surrogate_of("SurrogateFilled", parameters, key.step)
        drawn = draw_by_weight(surrogate, self.coordinates, key)
        return SurrogateSteps(self._measured(drawn).plan(parameters, key), surrogate)

    def reduce(self, planned: SurrogateSteps[CoordinateSteps], differences: Tensor, valid: Tensor) -> Tensor:
        """The measured entries, and the scaled surrogate everywhere else."""
        steps = planned.steps
        gradient = self._measured(steps.indices).reduce(steps, differences, valid)
        measured = steps.indices[valid.view(-1, len(steps.indices)).all(dim=0)]
        g, s = gradient[measured].double(), planned.surrogate[measured].double()
        largest = float(s.abs().max()) if len(s) else 0.0
        if largest > 0:
            # Of s over its largest entry: the squares of small numbers are zero, of large ones infinite.
            unit = s / largest
            filled = planned.surrogate.double() * (float(g @ unit) / float(unit @ unit) / largest)
        else:
            filled = torch.zeros(planned.surrogate.shape, dtype=torch.float64)
        filled[measured] = g
        return filled.to(gradient.dtype)

    def _measured(self, indices: Tensor) -> CGE:
        return CGE(self.mu, FixedCoordinates(indices), self.central)


def surrogate_of(owner: str, parameters: Parameters, step: int) -> Tensor:
    """What stands in `.grad`, `(size,)`, on the CPU; zero where a tensor has none.

    Raises:
        ConfigurationError: none has one.
        TangentError: it is not finite.
    """
    if all(tensor.grad is None for tensor in parameters.tensors):
        raise ConfigurationError(
            f"{owner}: expected a surrogate gradient in .grad at step {step}, found None in all parameters. "
            "Call surrogate.backward(batch) between zero_grad and this; to start from the last step's "
            "gradient, set .grad to zeros before the first step."
        )
    pieces = []
    for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
        grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        if not bool(grad.isfinite().all()):
            raise TangentError(
                f"{owner}: expected a finite surrogate in .grad at step {step}, got NaN or infinity for "
                f"{name!r}. Where the surrogate fails set .grad to zeros: nothing is then filled."
            )
        pieces.append(grad.detach().reshape(-1).to("cpu", parameters.dtype))
    return torch.cat(pieces)


def draw_by_weight(surrogate: Tensor, count: int, key: Key) -> Tensor:
    """`count` different indices, ascending: one after another, by the p_i among those that are left."""
    size = surrogate.abs().double()
    if float(size.max()) > 0:
        size = size / size.max()  # first, so that no sum overflows
        size = size / size.sum()
    weight = size + UNIFORM / len(size)
    # The first of independent exponential clocks with rates p_i rings with probability p_i; without memory,
    # so does the next. torch.multinomial does the same, for no more than 2^24.
    clocks = torch.empty_like(weight).exponential_(generator=key.generator(IMPORTANCE)) / weight
    return clocks.topk(count, largest=False).indices.sort().values
