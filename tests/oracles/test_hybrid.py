"""Hybrid: CGE on its set, RGE on all others, each as it would be alone."""

from __future__ import annotations

import math

import pytest
import torch

import zo
from tests.oracles.problems import PROBLEMS

SET = zo.RandomCoordinates(17, every=3)
CGE, RGE = zo.CGE(1e-4, SET, central=True), zo.RGE(1e-4, q=6)


def gradient_of(problem, evaluator, estimator, chunk=50) -> torch.Tensor:
    network, batch = problem.make()
    zo.LossGradient(network, problem.objective, estimator, evaluator=evaluator, chunk=chunk).backward(batch)
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_is_cge_on_the_set_and_rge_on_the_rest_to_the_bit_and_in_any_chunks(problem):
    """34 coordinate queries, then 6 directions: chunks of 7 cross the border."""
    found = gradient_of(problem, "loop", zo.Hybrid(CGE, RGE))
    rest = zo.RGE(1e-4, q=6, sparsity=zo.estimators.Complement(SET))
    network, _ = problem.make()
    chosen = SET.draw(zo.estimators.Parameters(network), zo.estimators.Key(0, 0))
    expected = gradient_of(problem, "loop", rest)
    assert (expected[chosen] == 0).all()
    expected[chosen] = gradient_of(problem, "loop", CGE)[chosen]
    assert torch.equal(found, expected)
    assert torch.equal(gradient_of(problem, "loop", zo.Hybrid(CGE, RGE), chunk=7), found)
    stacked = gradient_of(problem, "stacked", zo.Hybrid(CGE, RGE), chunk=7)
    assert torch.allclose(stacked, found, rtol=1e-8, atol=1e-9 * len(found))


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher"])
def test_exact_on_the_set_and_unbiased_on_the_rest(distribution):
    """A quadratic of 12 weights, 4 in the set; 600 directions. False alarm: 3 z-tests at 4.5, 2e-5."""
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    curvature, theta = a @ a.T / 12, torch.randn(12, generator=generator, dtype=torch.float64)
    truth, q = curvature @ theta, 600
    parameters = zo.estimators.Parameters(torch.nn.ParameterList([theta.clone()]))
    on_set, rest = torch.tensor([0, 3, 4, 11]), torch.tensor([1, 2, 5, 6, 7, 8, 9, 10])
    set_of_four = zo.FixedCoordinates(on_set)
    estimator = zo.Hybrid(zo.CGE(0.3, set_of_four, central=True), zo.RGE(0.3, q, distribution))
    plan = estimator.plan(parameters, zo.estimators.Key(2))
    steps = torch.zeros(8, 12, dtype=torch.float64)
    single = plan.chunk(0, 8)
    steps[torch.arange(8), single.indices] = single.steps
    steps = torch.cat([steps, plan.chunk(8, 8 + q).steps])
    differences = 0.5 * (((theta + steps) @ curvature) * (theta + steps)).sum(dim=1)
    differences -= 0.5 * theta @ curvature @ theta
    found = estimator.reduce(plan, differences, torch.ones(8 + q, dtype=torch.bool))
    assert torch.allclose(found[on_set], truth[on_set], rtol=0, atol=1e-12)
    each = (differences[8:] / 0.3)[:, None] * (steps[8:, rest] / 0.3) * (8 if distribution == "sphere" else 1)
    scale = each @ truth[rest] / truth[rest].square().sum()
    assert found[rest] @ truth[rest] / truth[rest].square().sum() == pytest.approx(float(scale.mean()))
    assert abs(scale.mean() - 1) / (scale.std() / math.sqrt(q)) < 4.5


def test_lost_queries_stay_where_they_belong():
    """A lost coordinate query leaves its coordinate at zero, a lost direction the mean of the others."""
    parameters = zo.estimators.Parameters(PROBLEMS[0].make()[0])
    estimator = zo.Hybrid(zo.CGE(1e-4, SET), RGE)
    plan = estimator.plan(parameters, zo.estimators.Key(0))
    differences = torch.arange(1.0, 24.0).double()
    valid = torch.ones(23, dtype=torch.bool)
    valid[[2, 20]] = False
    found = estimator.reduce(plan, differences, valid)
    coordinates, directions = plan.chunk(0, 17), plan.chunk(17, 23).steps / 1e-4
    assert found[coordinates.indices[2]] == 0
    others = torch.arange(17) != 2
    expected = differences[:17] / coordinates.steps
    assert torch.allclose(found[coordinates.indices[others]], expected[others])
    kept = [i for i in range(6) if i != 3]
    mean = torch.stack([differences[17 + i] / 1e-4 * directions[i] for i in kept]).mean(dim=0)
    rest = torch.ones(len(found), dtype=torch.bool)
    rest[coordinates.indices] = False
    assert torch.allclose(found[rest], mean[rest])
