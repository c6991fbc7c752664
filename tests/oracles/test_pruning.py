"""Pruning scores against the whole Hessian by autograd, closed forms and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, grad, vmap

import zo
from tests.oracles.problems import PROBLEMS, OracleProblem
from zo import pruning

SMOOTH = [problem for problem in PROBLEMS if problem.name in ("mlp", "normed")]  # no ReLU, and few weights


def flat_loss(problem: OracleProblem, network: nn.Module, batch):
    """The loss as a function of the flat parameters."""
    parameters = zo.estimators.Parameters(network)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        weights = dict(zip(parameters.names, parameters.split(theta), strict=True))
        return problem.objective(lambda x: functional_call(network, weights, (x,)), batch).mean()

    return parameters.flat(), loss


def true_grasp(problem: OracleProblem) -> torch.Tensor:
    """-theta * Hg with the whole matrix H, another route than our own."""
    network, batch = problem.make()
    theta, loss = flat_loss(problem, network, batch)
    return -theta * (hessian(loss, theta) @ problem.autograd(network, batch))


def relative(scores: torch.Tensor, truth: torch.Tensor) -> float:
    return float((scores - truth).norm() / truth.norm())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("problem", SMOOTH, ids=str)
def test_grasp_by_autograd(problem):
    network, batch = problem.make()
    scores = pruning.scores("grasp", network, problem.objective, batch)
    assert relative(scores.values, true_grasp(problem)) < 1e-10
    assert scores.removes == "largest"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("problem", SMOOTH, ids=str)
def test_zo_grasp_with_cge_is_grasp_to_first_order_in_the_step(problem):
    network, batch = problem.make()
    truth = true_grasp(problem)

    def error(step: float) -> float:
        scores = pruning.scores(
            "zo-grasp",
            network,
            problem.objective,
            batch,
            estimator=zo.CGE(1e-5),
            step=step,
            evaluator="stacked",
        )
        return relative(scores.values, truth)

    first, half = error(2e-3), error(1e-3)
    assert first < 0.05  # far from noise, and from any wrong scale
    assert 1.7 < first / half < 2.3


def test_the_largest_scores_are_those_whose_weights_hold_the_gradient_back():
    """Shrinking weight i by a part e changes |g|^2 by 2 e score_i: the sign, from its definition."""
    problem = PROBLEMS[0]
    network, batch = problem.make()
    scores = pruning.scores("grasp", network, problem.objective, batch)
    theta, loss = flat_loss(problem, network, batch)
    shrink = 1e-6
    variants = theta.repeat(len(theta), 1) * (1 - shrink * torch.eye(len(theta), dtype=theta.dtype))
    norms = vmap(lambda t: grad(loss)(t).square().sum())(variants)
    growth = (norms - grad(loss)(theta).square().sum()) / shrink
    assert torch.allclose(growth / 2, scores.values, atol=1e-4 * float(growth.abs().max()))
    mask = pruning.kept_weights(scores, 0.7, minimum=0.0)
    kept, removed = growth[mask], growth[~mask]
    forced = 4  # at least one weight of each tensor stays
    assert kept.sort().values[: len(kept) - forced].max() <= removed.min() + 1e-6
    assert removed.mean() > kept.mean()
    assert scores.values[mask].abs().max() > scores.values[~mask].abs().min()


@pytest.mark.slow
def test_mean_of_zo_grasp_with_rge_on_a_quadratic():
    """Gaussian, q directions: -theta [(1 + 1/q) H g + trace(H) / q g], as its docstring says.

    z-tests of 6 weights, 400 draws; false alarm at |z| > 4.7: 2e-5 in all. Plain GraSP stands far off.
    """
    size, q, trials = 6, 2, 400
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    curvature = a @ a.T / size
    theta = torch.randn(size, generator=generator, dtype=torch.float64)
    network = nn.ParameterList([theta.clone()])

    def objective(network, batch):
        x = network[0]
        return (0.5 * x @ curvature @ x).expand(len(batch))

    def score(seed: int) -> torch.Tensor:
        return pruning.scores(
            "zo-grasp",
            network,
            objective,
            torch.zeros(1, 1),
            estimator=zo.RGE(1e-2, q),
            step=0.5,
            seed=seed,
            evaluator="loop",
        ).values

    samples = torch.stack([score(seed) for seed in range(trials)])
    g = curvature @ theta
    expected = -theta * ((1 + 1 / q) * (curvature @ g) + curvature.trace() / q * g)
    spread = samples.std(dim=0) / math.sqrt(trials)
    assert (((samples.mean(dim=0) - expected) / spread).abs() < 4.7).all()
    assert (((samples.mean(dim=0) + theta * (curvature @ g)) / spread).abs() > 4.7).any()
