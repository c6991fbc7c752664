"""RGE on a sparse set: scale, unbiasedness and the smoothed gradient, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zo
from zo.estimators.rge import RandomSteps

DISTRIBUTIONS = ("gaussian", "sphere", "rademacher")
SCHEMES = ("forward", "antithetic")
SUPPORT = torch.tensor([1, 2, 5, 8, 9])


class Basis(RandomSteps):
    """Directions swapped for a basis of the support, with the identity over c as mean outer product."""

    def direction(self, i: int) -> torch.Tensor:
        u = torch.zeros(self.dimension, dtype=self.dtype)
        u[i] = 1.0 if self.distribution == "sphere" else math.sqrt(self.dimension)
        return u


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_basis_directions_on_a_linear_loss_give_the_gradient_on_the_set(distribution, scheme, monkeypatch):
    """With the factor d in place of |S| the sphere's gradient would be 12 / 5 too long."""
    network = nn.ModuleDict({"a": nn.Linear(1, 9, bias=False), "b": nn.Linear(2, 1)}).double()
    slopes = torch.randn(12, generator=torch.Generator().manual_seed(3)).double()

    def objective(network, batch):
        return (torch.cat([p.flatten() for p in network.parameters()]) @ slopes).expand(len(batch))

    monkeypatch.setattr("zo.estimators.rge.RandomSteps", Basis)
    estimator = zo.RGE(
        1e-3,
        q=5,
        distribution=distribution,
        central=scheme != "forward",
        sparsity=zo.FixedCoordinates(SUPPORT),
    )
    zo.LossGradient(network, objective, estimator, evaluator="loop").backward(torch.zeros(2, 1).double())
    expected = torch.zeros_like(slopes)
    expected[SUPPORT] = slopes[SUPPORT]
    found = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert (found[expected == 0] == 0).all()


def draws(estimator, loss, theta, steps: int) -> torch.Tensor:
    """Gradients of `steps` optimiser steps, `(steps, size)`, of a loss of `(variants, size)`."""
    parameters = zo.Parameters(nn.ParameterList([theta[:7].clone(), theta[7:].clone()]))
    found = []
    for step in range(steps):
        plan = estimator.plan(parameters, zo.Key(1, step))
        differences = loss(theta + plan.chunk(0, plan.queries).steps) - loss(theta[None])
        found.append(estimator.reduce(plan, differences, torch.ones(plan.queries, dtype=torch.bool)))
    return torch.stack(found)


def quadratic(size: int):
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    curvature, theta = a @ a.T / size, torch.randn(size, generator=generator, dtype=torch.float64)
    return theta, curvature, lambda x: 0.5 * ((x @ curvature) * x).sum(1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_unbiased_on_a_quadratic_layer_by_layer(distribution, scheme):
    """z-test of the scale of each layer's part of S against 1.

    False alarm: 6 cases x 2 layers at |z| > 4.5, 8e-5 in all. Wrong factors (size for |S|, or none)
    stand at |z| > 20.
    """
    theta, curvature, loss = quadratic(12)
    truth = curvature @ theta
    estimator = zo.RGE(
        0.3,
        q=1,
        distribution=distribution,
        central=scheme != "forward",
        sparsity=zo.FixedCoordinates(SUPPORT),
    )
    found = draws(estimator, loss, theta, 600)
    for layer in (SUPPORT[:3], SUPPORT[3:]):
        scale = found[:, layer] @ truth[layer] / truth[layer].square().sum()
        assert abs(scale.mean() - 1) / (scale.std() / math.sqrt(len(scale))) < 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_smoothed_gradient_on_a_cubic(distribution, scheme):
    """l = sum x^3: g has mean 3 x^2 + c mu^2, c from the fourth moments of the directions.

    3 for Gaussians, 1 for signs; on the sphere |S| u gives 3 / (|S| + 2), the moment of the unit ball
    over which the loss is smoothed. False alarm: 6 x 5 entries at |z| > 4.7, 8e-5 in all.
    """
    mu, n = 1.2, len(SUPPORT)
    theta = torch.linspace(-0.6, 0.9, 12, dtype=torch.float64)
    estimator = zo.RGE(
        mu,
        q=300,
        distribution=distribution,
        central=scheme != "forward",
        sparsity=zo.FixedCoordinates(SUPPORT),
    )
    parts = draws(estimator, lambda x: x.pow(3).sum(1), theta, 20)[:, SUPPORT]
    c = {"gaussian": 3, "rademacher": 1, "sphere": 3 / (n + 2)}[distribution]
    expected = 3 * theta[SUPPORT].square() + c * mu**2
    z = (parts.mean(dim=0) - expected) / (parts.std(dim=0) / math.sqrt(len(parts)))
    # Student's t with 19 degrees: its 1.3e-6 tail is at 6.9, where the normal's is at 4.7.
    assert (z.abs() < 6.9).all()


def test_squared_error_is_as_large_as_stated():
    """Gaussian: E |g - grad|^2 = (|S| + 1) / q |grad|^2 on a linear loss; relative spread about .04."""
    slopes = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)
    estimator = zo.RGE(1e-3, q=4, sparsity=zo.FixedCoordinates(SUPPORT))
    found = draws(estimator, lambda x: x @ slopes, torch.zeros(12, dtype=torch.float64), 400)[:, SUPPORT]
    errors = (found - slopes[SUPPORT]).square().sum(dim=1) / slopes[SUPPORT].square().sum()
    z = (errors.mean() - (len(SUPPORT) + 1) / 4) / (errors.std() / math.sqrt(len(errors)))
    assert abs(z) < 4.5
