"""On a quadratic, whose gradient has a closed form: what each library's estimate is a multiple of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks.estimators.methods import DISTRIBUTIONS
from benchmarks.estimators.others import TORCHOPT, evotorch_gradient, installed, torchopt_gradient
from benchmarks.estimators.quality import spread

SIZE, SAMPLES = 20, 10  # weights; directions of one estimate
SEED = 10**6  # of the quadratics, apart from those of the directions


@dataclass(frozen=True)
class Quadratic:
    """`l = theta A theta / 2 + b theta + 1` in float64, and a place on it; the gradient is A theta + b.

    Attributes:
        matrix: A, symmetric, eigenvalues of both signs.
        vector: b.
        theta: the place.
    """

    matrix: Tensor
    vector: Tensor
    theta: Tensor

    @classmethod
    def make(cls, seed: int) -> Quadratic:
        """Another one for each seed, so that a mean does not hang on one gradient's direction."""
        generator = torch.Generator().manual_seed(SEED + seed)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        matrix = draw(SIZE, SIZE)
        return cls((matrix + matrix.T) / math.sqrt(8 * SIZE), draw(SIZE), draw(SIZE))

    def losses(self, theta: Tensor) -> Tensor:
        """`(..., size)` to `(...)`."""
        return ((theta @ self.matrix) * theta).sum(-1) / 2 + theta @ self.vector + 1

    def gradient(self) -> Tensor:
        """The closed form."""
        return self.matrix @ self.theta + self.vector

    def ours(self, estimator: zo.estimators.Estimator[Any], seed: int) -> Tensor:
        """An estimate by `zo.LossGradient`."""
        network = _Point(self.theta)
        zo.LossGradient(network, lambda: self.losses(network.theta), estimator, seed=seed).backward()
        assert network.theta.grad is not None
        return network.theta.grad

    def directions(self, estimator: zo.RGE) -> Tensor:
        """Those of its estimate with seed 0, `(q, size)`."""
        planned = estimator.plan(zo.estimators.Parameters(_Point(self.theta)), zo.estimators.Key(0))
        return planned.directions(0, estimator.q)


class _Point(nn.Module):
    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


@dataclass(frozen=True)
class Contender:
    """An estimate and what is known of it.

    Attributes:
        queries: that it takes.
        power: its mean is sigma^power times the gradient.
        estimate: of a quadratic, with sigma and the seed of its draws.
    """

    queries: int
    power: int
    estimate: Callable[[Quadratic, float, int], Tensor]


def quadratic(repeats: int, sigmas: tuple[float, ...] = (1.0, 0.1)) -> list[dict[str, Any]]:
    """The factor that each estimate's mean has before the gradient, and its error once that is taken out.

    The error is the root of the mean squared one, over the gradient's norm; sqrt((d + 1) / q) = 1.45 is
    that of Gaussian directions.
    """
    rows = []
    for sigma in sigmas:
        for name, contender in _contenders().items():
            theory = sigma**contender.power
            factors, errors = [], []
            for seed in range(repeats):
                problem = Quadratic.make(seed)
                truth, found = problem.gradient(), contender.estimate(problem, sigma, seed)
                factors.append(float(found @ truth / (truth @ truth)))
                errors.append(float((found / theory - truth).square().sum() / truth.square().sum()))
            rows.append(
                {
                    "estimate": name,
                    "sigma": sigma,
                    "queries": contender.queries,
                    "factor": statistics.mean(factors),
                    "factor, standard error": spread(factors) / math.sqrt(repeats),
                    "factor in theory": theory,
                    "relative error without it": math.sqrt(statistics.mean(errors)),
                }
            )
    return rows


def same_directions(sigma: float = 0.1) -> dict[str, float]:
    """Largest relative difference of the others' estimates to ours along our own directions.

    Rounding, where they are the same estimator up to the factor that the name says.
    """
    problem = Quadratic.make(0)
    both = zo.RGE(sigma, SAMPLES, central=True)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    if installed("torchopt"):
        for method, q, power in (("antithetic", SAMPLES, 0), ("forward", 1, 2), ("forward", SAMPLES, 2)):
            scheme: Any = method
            estimator = zo.RGE(sigma, q, central=scheme != "forward")
            ours = sigma**power * problem.ours(estimator, 0)
            draws = iter(problem.directions(estimator))
            theirs = torchopt_gradient(scheme, problem.losses, problem.theta, q, sigma, partial(_next, draws))
            pairs[f"torchopt, {method}, q = {q} = sigma^{power} zo"] = theirs, ours
    if installed("evotorch"):
        theirs = evotorch_gradient(problem.losses, problem.theta, sigma, directions=problem.directions(both))
        pairs["evotorch, symmetric = sigma^2 zo"] = theirs, sigma**2 * problem.ours(both, 0)
    return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


def _contenders() -> dict[str, Contender]:
    made = {}
    for distribution in DISTRIBUTIONS:
        made[f"zo, {distribution}, forward"] = Contender(SAMPLES, 0, partial(_zo, distribution, "forward"))
        both = partial(_zo, distribution, "antithetic")
        made[f"zo, {distribution}, antithetic"] = Contender(2 * SAMPLES, 0, both)
    for method in TORCHOPT if installed("torchopt") else ():
        queries = (2 if method == "antithetic" else 1) * SAMPLES
        power = 2 if method == "forward" else 0
        made[f"torchopt, {method}"] = Contender(queries, power, partial(_torchopt, method))
    if installed("evotorch"):
        made["evotorch, symmetric"] = Contender(2 * SAMPLES, 2, _evotorch)
    return made


def _zo(distribution: Any, scheme: Any, problem: Quadratic, sigma: float, seed: int) -> Tensor:  # noqa: ANN401
    return problem.ours(zo.RGE(sigma, SAMPLES, distribution, scheme != "forward"), seed)


def _torchopt(method: Any, problem: Quadratic, sigma: float, seed: int) -> Tensor:  # noqa: ANN401
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: Any) -> Tensor:  # noqa: ANN401
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)

    return torchopt_gradient(method, problem.losses, problem.theta, SAMPLES, sigma, draw)


def _evotorch(problem: Quadratic, sigma: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return evotorch_gradient(problem.losses, problem.theta, sigma, queries=2 * SAMPLES, generator=generator)


def _next(draws: Iterator[Tensor], shape: object) -> Tensor:
    return next(draws)
