"""RGE, on all weights and on a sparse set: its formula, its mean and its error against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zo
from tests.oracles.problems import PROBLEMS

DISTRIBUTIONS = ("gaussian", "sphere", "rademacher")
SUPPORT = torch.tensor([1, 2, 5, 8, 9])
SETS = [None, zo.estimators.FixedCoordinates(SUPPORT)]
CASES = pytest.mark.parametrize("sparsity", SETS, ids=["dense", "sparse"])
WAYS = pytest.mark.parametrize("central", [False, True], ids=["forward", "central"])


def moved(sparsity: zo.estimators.Sparsity | None) -> torch.Tensor:
    return torch.arange(12) if sparsity is None else SUPPORT


@CASES
@WAYS
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_it_is_c_times_the_mean_of_slopes_times_directions(distribution, central, sparsity):
    """On a linear loss, whose slopes are known; with d for |S| the sphere's would be 12 / 5 too long."""
    torch.manual_seed(3)
    network = nn.ModuleDict({"a": nn.Linear(1, 9, bias=False), "b": nn.Linear(2, 1)}).double()
    slopes, mu, q = torch.randn(12).double(), 1e-3, 7

    def objective(network, batch):
        return (torch.cat([p.flatten() for p in network.parameters()]) @ slopes).expand(len(batch))

    estimator = zo.RGE(mu, q, distribution, central, sparsity)
    u = (
        estimator.plan(zo.estimators.Parameters(network), zo.estimators.Key(0))
        .chunk(0, q * (1 + central))
        .steps
        / mu
    )
    if central:
        assert torch.equal(u[0::2], -u[1::2])
        u = u[0::2]
    inside = moved(sparsity)
    outside = torch.ones(12, dtype=torch.bool)
    outside[inside] = False
    assert (u[:, outside] == 0).all()
    if distribution == "sphere":
        assert torch.allclose(u.norm(dim=1), torch.ones(q).double())
    if distribution == "rademacher":
        assert torch.allclose(u[:, inside].abs(), torch.ones(q, len(inside)).double())
    zo.LossGradient(network, objective, estimator, evaluator="loop").backward(torch.zeros(2, 1).double())
    grad = torch.cat([p.grad.flatten() for p in network.parameters()])
    c = len(inside) if distribution == "sphere" else 1
    assert torch.allclose(grad, c / q * (u @ slopes) @ u, rtol=1e-9, atol=1e-9)


@pytest.mark.quick_cases(2)
@CASES
@WAYS
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_its_mean_is_the_gradient_of_the_smoothed_loss(distribution, central, sparsity):
    """l = theta' A theta / 2 + sum theta^3: g has mean A theta + 3 theta^2 + m mu^2, on the set.

    m from the fourth moments of the directions: 3 for Gaussians, 1 for signs; on the sphere n u gives
    3 / (n + 2), the moment of the unit ball over which the loss is smoothed. 12 cases of up to 12 numbers
    at |z| > 5: a false alarm has probability 6e-5. A factor of d / |S| on the set stands at |z| > 10.
    """
    mu, q, inside = 0.9, 1500, moved(sparsity)
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    curvature, theta = a @ a.T / 12, torch.linspace(-0.6, 0.9, 12, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((x @ curvature) * x).sum(dim=1) + x.pow(3).sum(dim=1)

    parameters = zo.estimators.Parameters(nn.ParameterList([theta[:7].clone(), theta[7:].clone()]))
    estimator = zo.RGE(mu, q, distribution, central, sparsity)
    plan = estimator.plan(parameters, zo.estimators.Key(1))
    steps = plan.chunk(0, plan.queries).steps
    differences = loss(theta + steps) - loss(theta[None])
    grad = estimator.reduce(plan, differences, torch.ones(plan.queries, dtype=torch.bool))
    c, n = len(inside) if distribution == "sphere" else 1, len(inside)
    slopes, u = differences / mu, steps / mu
    if central:
        slopes, u = (slopes[0::2] - slopes[1::2]) / 2, u[0::2]
    terms = (c * slopes[:, None] * u)[:, inside]
    moment = {"gaussian": 3, "rademacher": 1, "sphere": 3 / (n + 2)}[distribution]
    expected = (curvature @ theta + 3 * theta.square() + moment * mu**2)[inside]
    z = (grad[inside] - expected) / (terms.std(dim=0) / math.sqrt(q))
    assert z.abs().max() < 5


def test_its_squared_error_is_as_large_as_stated():
    """Gaussian: E |g - grad|^2 = (|S| + 1) / q |grad|^2 on a linear loss; |z| < 4.5 of 200 draws."""
    slopes, q = torch.linspace(0.5, 1.5, 12, dtype=torch.float64), 4
    parameters = zo.estimators.Parameters(nn.ParameterList([torch.zeros(12, dtype=torch.float64)]))
    estimator = zo.RGE(1e-3, q, sparsity=zo.estimators.FixedCoordinates(SUPPORT))
    errors = []
    for step in range(200):
        plan = estimator.plan(parameters, zo.estimators.Key(1, step))
        grad = estimator.reduce(plan, plan.chunk(0, q).steps @ slopes, torch.ones(q, dtype=torch.bool))
        errors.append((grad - slopes)[SUPPORT].square().sum() / slopes[SUPPORT].square().sum())
    error = torch.stack(errors)
    z = (error.mean() - (len(SUPPORT) + 1) / q) / (error.std() / math.sqrt(len(error)))
    assert abs(z) < 4.5


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_stacked_and_loop_agree(problem):
    grads = []
    for evaluator in ("loop", "stacked"):
        network, batch = problem.make()
        estimator = zo.RGE(mu=1e-4, q=7)
        zo.LossGradient(network, problem.objective, estimator, evaluator=evaluator, chunk=3).backward(batch)
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    # Both round losses of order one to 1e-16 and divide by mu; directions have norm up to sqrt(size).
    assert torch.allclose(*grads, rtol=1e-8, atol=1e-9 * len(grads[0]))
