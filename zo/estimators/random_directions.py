"""RGE: a few random directions, the average of the slopes along them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zo.draws import Key
from zo.estimators.estimator import Estimator, check_choice, check_count, check_mu
from zo.parameters import Parameters
from zo.perturbation import Directions, Perturbations

DIRECTIONS = 2  # first word of the key's path for these draws
BLOCK = 64  # directions held at a time when they are summed


@dataclass(frozen=True)
class RandomSteps(Perturbations):
    """Steps along random directions, drawn anew from the key whenever they are asked for.

    With the antithetic scheme query 2 i goes along direction i and query 2 i + 1 against it.
    """

    key: Key
    q: int
    mu: float
    distribution: str
    antithetic: bool
    size: int
    dtype: torch.dtype

    @property
    def queries(self) -> int:
        """One a direction, or two."""
        return self.q * (2 if self.antithetic else 1)

    def direction(self, i: int) -> Tensor:
        """The i-th direction u_i, `(size,)`: it hangs on key and i alone, not on the chunk."""
        generator = self.key.generator(DIRECTIONS, i)
        if self.distribution == "rademacher":
            return torch.randint(0, 2, (self.size,), generator=generator).to(self.dtype) * 2 - 1
        u = torch.randn(self.size, generator=generator, dtype=self.dtype)
        return u / u.norm() if self.distribution == "sphere" else u

    def directions(self, start: int, stop: int) -> Tensor:
        """Directions start to stop - 1, `(stop - start, size)`."""
        return torch.stack([self.direction(i) for i in range(start, stop)])

    def chunk(self, start: int, stop: int) -> Directions:
        """Queries start to stop - 1, mu included."""
        if not self.antithetic:
            return Directions(self.mu * self.directions(start, stop))
        signed = [self.direction(p // 2) * (self.mu if p % 2 == 0 else -self.mu) for p in range(start, stop)]
        return Directions(torch.stack(signed))


@dataclass(frozen=True)
class RandomDirections(Estimator[RandomSteps]):
    """The random gradient estimator (RGE).

        forward      g = (c/q) sum_i [l(theta + mu u_i) - l(theta)] / mu * u_i
        antithetic   g = (c/q) sum_i [l(theta + mu u_i) - l(theta - mu u_i)] / 2 mu * u_i

    c = 1 for Gaussian and Rademacher directions, whose covariance is the identity; c = size for the
    unit sphere, whose covariance is the identity over size. So g is an unbiased estimate of the
    gradient of the loss smoothed over mu u (Nesterov and Spokoiny 2017; Flaxman et al. 2005 for the
    sphere); on a quadratic the antithetic g is unbiased for the gradient itself. Failed queries are
    left out: the mean is over the directions that remain.

    Args:
        mu: smoothing parameter, in the parameters' units.
        q: number of directions.
        distribution: "gaussian", "sphere" or "rademacher".
        scheme: "forward", q queries, or "antithetic", 2 q.

    Raises:
        ConfigurationError: a value out of its range.
    """

    mu: float
    q: int
    distribution: Literal["gaussian", "sphere", "rademacher"] = "gaussian"
    scheme: Literal["forward", "antithetic"] = "forward"

    def __post_init__(self) -> None:
        """Check where it is written."""
        check_mu("RandomDirections", self.mu)
        check_count("RandomDirections", "q", self.q)
        check_choice(
            "RandomDirections", "distribution", self.distribution, ("gaussian", "sphere", "rademacher")
        )
        check_choice("RandomDirections", "scheme", self.scheme, ("forward", "antithetic"))

    def queries(self, parameters: Parameters) -> int:
        """One a direction, two if antithetic."""
        return self.q * (1 if self.scheme == "forward" else 2)

    def plan(self, parameters: Parameters, key: Key) -> RandomSteps:
        """The directions of one optimiser step."""
        antithetic = self.scheme == "antithetic"
        return RandomSteps(
            key, self.q, self.mu, self.distribution, antithetic, parameters.size, parameters.dtype
        )

    def reduce(self, planned: RandomSteps, differences: Tensor, valid: Tensor) -> Tensor:
        """The mean over the directions that have all their queries."""
        slopes = differences / self.mu
        if planned.antithetic:
            slopes = (slopes[0::2] - slopes[1::2]) / 2
            valid = valid[0::2] & valid[1::2]
        factor = planned.size if self.distribution == "sphere" else 1
        weights = torch.where(valid, slopes, 0.0) * (factor / max(1, int(valid.sum())))
        gradient = torch.zeros(planned.size, dtype=planned.dtype)
        for start in range(0, planned.q, BLOCK):
            stop = min(start + BLOCK, planned.q)
            gradient += weights[start:stop].to(planned.dtype) @ planned.directions(start, stop)
        return gradient
