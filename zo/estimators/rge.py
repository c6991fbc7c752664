"""RGE: a few random directions, over all parameters or a sparse set; the mean of the slopes along them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blackbox.checks import check_choice, check_count, check_flag
from zo.draws import DIRECTIONS, Key
from zo.errors import ConfigurationError
from zo.estimators.estimator import Estimator, check_mu
from zo.estimators.sparsity import Sparsity, drawn
from zo.parameters import Parameters
from zo.perturbation import Directions, Perturbations

BLOCK = 64  # directions held at a time when they are summed


@dataclass(frozen=True)
class RandomSteps(Perturbations):
    """Steps along random directions, drawn anew from the key whenever they are asked for.

    With central differences query 2 i goes along direction i and query 2 i + 1 against it.

    Attributes:
        size: the size of the flat gradient.
        support: `(coordinates,)` flat indices that the directions move; None for all.
    """

    key: Key
    q: int
    mu: float
    distribution: str
    central: bool
    size: int
    dtype: torch.dtype
    support: Tensor | None = None

    @property
    def queries(self) -> int:
        """The number of queries: one for each direction, two if central."""
        return self.q * (2 if self.central else 1)

    @property
    def dimension(self) -> int:
        """The number of coordinates that a direction moves."""
        return self.size if self.support is None else len(self.support)

    def directions(self, start: int, stop: int) -> Tensor:
        """Directions start to stop - 1, `(stop - start, dimension)`: each depends on key and number alone."""
        directions = []
        for i in range(start, stop):
            generator = self.key.generator(DIRECTIONS, i)
            directions.append(draw_directions(self.distribution, (self.dimension,), self.dtype, generator))
        return torch.stack(directions)

    def spread(self, values: Tensor) -> Tensor:
        """`(..., dimension)` on the support to `(..., size)`, zero elsewhere."""
        if self.support is None:
            return values
        spread = torch.zeros(*values.shape[:-1], self.size, dtype=values.dtype)
        spread[..., self.support] = values
        return spread

    def chunk(self, start: int, stop: int) -> Directions:
        """Queries start to stop - 1, mu included."""
        if not self.central:
            return Directions(self.spread(self.mu * self.directions(start, stop)))
        first = start // 2
        pairs = self.mu * self.directions(first, (stop + 1) // 2).repeat_interleave(2, dim=0)
        pairs[1::2] *= -1
        return Directions(self.spread(pairs[start - 2 * first : stop - 2 * first]))

    def slopes(self) -> tuple[Tensor, ...]:
        """The query of each direction, or its two."""
        return (torch.arange(self.queries).view(self.q, -1),)


@dataclass(frozen=True)
class RGE(Estimator[RandomSteps]):
    """The random gradient estimator (RGE).

        forward      g = (c/q) sum_i [l(theta + mu u_i) - l(theta)] / mu * u_i
        central      g = (c/q) sum_i [l(theta + mu u_i) - l(theta - mu u_i)] / 2 mu * u_i

    c = 1 for Gaussian and Rademacher directions, whose covariance is the identity. c = d for the unit sphere,
    whose covariance is the identity over d, the number of coordinates that a direction moves: all parameters,
    or |S_t| on a sparse set. On a quadratic g is therefore unbiased for the gradient itself, forward or
    central (third moments are zero). Otherwise it is unbiased for the gradient of a smoothed loss, E l(theta
    + mu u): u Gaussian (Nesterov and Spokoiny 2017), or in the unit ball for the sphere (Flaxman et al.
    2005). With Rademacher signs it is unbiased up to O(mu^2). With a sparse set, g estimates the gradient on
    S_t, is zero elsewhere, and is not scaled up for the other coordinates. Its squared error is about d / q
    times the squared gradient. Failed queries are left out: the mean is over the remaining directions, and
    where one sign of two failed the other sign gives the slope.

    Each entry of a step is about mu; on the sphere, mu / sqrt(d).

    Args:
        mu: smoothing parameter, in the parameters' units.
        q: the number of random directions.
        distribution: "gaussian", "sphere" or "rademacher".
        central: whether each direction is taken with both signs (antithetic), for 2 q queries instead of q.
        sparsity: the rule that chooses the coordinates to move, step by step; None for all.

    Raises:
        ConfigurationError: a value is out of range; or, at the first step, mu is lost in the rounding of the
            weights.
    """

    mu: float
    q: int
    distribution: Literal["gaussian", "sphere", "rademacher"] = "gaussian"
    central: bool = False
    sparsity: Sparsity | None = None

    def __post_init__(self) -> None:
        """Check where it is written."""
        check_mu("RGE", self.mu)
        check_count("RGE", "q", self.q)
        check_choice("RGE", "distribution", self.distribution, ("gaussian", "sphere", "rademacher"))
        check_flag("RGE", "central", self.central)

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """Return the number of queries of a step: one for each direction, two if central."""
        return self.q * (2 if self.central else 1)

    def plan(self, parameters: Parameters, key: Key) -> RandomSteps:
        """The directions of one optimiser step."""
        support = None if self.sparsity is None else drawn(self.sparsity, parameters, key)
        planned = RandomSteps(
            key=key,
            q=self.q,
            mu=self.mu,
            distribution=self.distribution,
            central=self.central,
            size=parameters.size,
            dtype=parameters.dtype,
            support=support,
        )
        self._refuse_lost_steps(parameters, planned)
        return planned

    def reduce(self, planned: RandomSteps, differences: Tensor, valid: Tensor) -> Tensor:
        """The mean over the directions with a successful query; one of two is enough."""
        slopes = torch.where(valid, differences / self.mu, 0.0)
        if planned.central:
            sides = valid[0::2].int() + valid[1::2].int()
            slopes, valid = (slopes[0::2] - slopes[1::2]) / sides.clamp(min=1), sides > 0
        factor = planned.dimension if self.distribution == "sphere" else 1
        weights = torch.where(valid, slopes, 0.0) * (factor / max(1, int(valid.sum())))
        gradient = torch.zeros(planned.dimension, dtype=planned.dtype)
        for start in range(0, planned.q, BLOCK):
            stop = min(start + BLOCK, planned.q)
            gradient += weights[start:stop].to(planned.dtype) @ planned.directions(start, stop)
        return planned.spread(gradient)

    def _refuse_lost_steps(self, parameters: Parameters, planned: RandomSteps) -> None:
        """Below a unit in the last place of the weights variants are the base, and g would be too small."""
        step = self.mu / math.sqrt(planned.dimension) if self.distribution == "sphere" else self.mu
        for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
            typical = float(tensor.detach().double().square().mean().sqrt())
            if step < torch.finfo(tensor.dtype).eps * typical:
                raise ConfigurationError(
                    f"RGE, mu: expected steps above the rounding of the weights, got entries of "
                    f"about {step:.1e} for {name!r}, whose weights are about {typical:.1e}. Take a larger "
                    "mu; on the sphere one that grows with the square root of the number of weights."
                )


def draw_directions(
    distribution: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Independent directions along the last axis of a shape: "gaussian", "sphere" or "rademacher"."""
    if distribution == "rademacher":
        return torch.randint(0, 2, shape, generator=generator).to(dtype) * 2 - 1
    u = torch.randn(shape, generator=generator, dtype=dtype)
    return u / u.norm(dim=-1, keepdim=True) if distribution == "sphere" else u
