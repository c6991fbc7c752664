"""RGE: scale, unbiasedness and smoothing against closed forms; the randomness taken out where it can be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zo
from tests.oracles.problems import PROBLEMS
from zo.estimators.rge import RandomSteps
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked

DISTRIBUTIONS = ("gaussian", "sphere", "rademacher")


class Basis(RandomSteps):
    """The directions swapped for a basis, scaled so that their mean outer product is the identity over c."""

    def direction(self, i: int) -> torch.Tensor:
        u = torch.zeros(self.size, dtype=self.dtype)
        u[i] = 1.0 if self.distribution == "sphere" else math.sqrt(self.size)
        return u


def linear_problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    network = nn.ModuleDict({"a": nn.Linear(1, 9, bias=False), "b": nn.Linear(2, 1)}).double()
    slopes = torch.randn(12).double()
    return network, slopes, torch.zeros(2, 1).double()


def linear_objective(slopes):
    def objective(network, batch):
        flat = torch.cat([p.flatten() for p in network.parameters()])
        return (flat @ slopes).expand(len(batch))

    return objective


@pytest.mark.parametrize("scheme", ["forward", "antithetic"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_basis_directions_on_a_linear_loss_give_the_gradient(distribution, scheme, monkeypatch):
    network, slopes, batch = linear_problem()
    monkeypatch.setattr("zo.estimators.rge.RandomSteps", Basis)
    estimator = zo.RGE(mu=1e-3, q=12, distribution=distribution, central=scheme != "forward")
    zo.LossGradient(network, linear_objective(slopes), estimator, evaluator="loop").backward(batch)
    found = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert torch.allclose(found, slopes, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_unbiased_on_a_quadratic_layer_by_layer(distribution):
    """Antithetic differences of a quadratic are exact slopes, so the mean of g is the gradient.

    z-test of the mean projection on the gradient, for each layer apart: a false alarm in one of
    2 x 3 tests at |z| > 4.5 has probability 4e-5. Seeds are fixed, so it either passes or not.
    """
    size, trials = 12, 4000
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    curvature, theta = a @ a.T / size, torch.randn(size, generator=generator, dtype=torch.float64)
    truth = curvature @ theta
    network = nn.ParameterList([theta[:9].clone(), theta[9:].clone()])
    parameters = zo.Parameters(network)
    estimator = zo.RGE(mu=0.3, q=1, distribution=distribution, central=True)
    draws = []
    for step in range(trials):
        plan = estimator.plan(parameters, zo.Key(1, step))
        moved = theta + plan.chunk(0, 2).steps
        differences = 0.5 * ((moved @ curvature) * moved).sum(1) - 0.5 * theta @ curvature @ theta
        draws.append(estimator.reduce(plan, differences, torch.ones(2, dtype=torch.bool)))
    draws = torch.stack(draws)
    for layer in (slice(0, 9), slice(9, 12)):
        scale = draws[:, layer] @ truth[layer] / truth[layer].square().sum()
        z = (scale.mean() - 1) / (scale.std() / math.sqrt(trials))
        assert abs(z) < 4.5


def test_forward_gaussian_matches_the_smoothed_gradient_on_a_cubic():
    """For l = sum x^3 the loss smoothed by mu u has gradient 3 x^2 + 3 mu^2 (Gaussian third moments)."""
    mu, trials = 0.5, 20000
    theta = torch.tensor([0.7, -0.4], dtype=torch.float64)
    parameters = zo.Parameters(nn.ParameterList([theta.clone()]))
    estimator = zo.RGE(mu=mu, q=trials)
    plan = estimator.plan(parameters, zo.Key(11))
    u = plan.directions(0, trials)
    differences = (theta + mu * u).pow(3).sum(1) - theta.pow(3).sum()
    found = estimator.reduce(plan, differences, torch.ones(trials, dtype=torch.bool))
    each = (differences / mu)[:, None] * u
    z = (found - (3 * theta.square() + 3 * mu**2)) / (each.std(dim=0) / math.sqrt(trials))
    assert (z.abs() < 4.5).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_stacked_and_loop_agree(problem, distribution):
    found = []
    for evaluator in (Loop(), Stacked()):
        network, batch = problem.make()
        estimator = zo.RGE(mu=1e-4, q=7, distribution=distribution)
        zo.LossGradient(network, problem.objective, estimator, evaluator=evaluator, chunk=3).backward(batch)
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    # Both round losses of order one to 1e-16 and divide by mu; directions have norm up to sqrt(size).
    assert torch.allclose(*found, rtol=1e-8, atol=1e-9 * len(found[0]))
