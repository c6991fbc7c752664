"""GraSP: how much the gradient's norm grows when a weight goes; by autograd, and from values alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zo.estimators.estimator import Estimator, check_mu
from zo.pruning.problem import PruningProblem


def grasp(problem: PruningProblem) -> Tensor:
    """`-theta * H g` by autograd, `(size,)`; the largest are removed (Wang et al., ICLR 2020, eq. 8)."""
    return -problem.parameters.flat() * problem.exact(hessian_product=True)


def zo_grasp(problem: PruningProblem, estimator: Estimator[Any], step: float) -> Tensor:
    """`-theta * [g(theta + step g_hat) - g(theta)] / step`, `(size,)` (DeepZero, Chen et al., ICLR 2024).

    g_hat = g(theta), and both g have the same directions: with others their difference would be noise
    over step. Cost: twice the queries of the estimator.

    With q Gaussian directions the mean of the score is, on a quadratic, not GraSP's but

        -theta * [(1 + 1/q) H g + (trace(H) / q) g]

    since g_hat is made of the directions that H meets again; other directions for it would take the
    trace away, at q queries more, but not the noise, which is what counts (see `agreement`).

    In float32 `step * g_hat` has to be seen in differences over mu: with CGE, whose g_hat is not
    blown up by noise, a step of mu = 5e-3 ranked a small CNN's weights with a correlation of .35 to
    GraSP, a step of .5 with .82.

    Raises:
        ConfigurationError: the step is no step.
        FailedQueriesError: queries failed; the difference of two gradients from other queries means
            nothing.
    """
    check_mu("zo-grasp", step)
    here = problem.estimated(estimator)
    there = problem.estimated(estimator, displacement=step * here)
    return -problem.parameters.flat() * (there - here) / step
