"""Hybrid: CGE on its set, RGE on all others, each as it would be alone."""

from __future__ import annotations

import math

import pytest
import torch

import zo
from tests.oracles.problems import PROBLEMS
from tests.oracles.test_masked_directions import quadratic
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked

SET = zo.RandomCoordinates(17, every=3)
CGE, RGE = zo.CGE(1e-4, SET, central=True), zo.RGE(1e-4, q=6)


def gradient_of(problem, evaluator, estimator, chunk=50) -> torch.Tensor:
    network, batch = problem.make()
    zo.LossGradient(network, problem.objective, estimator, evaluator=evaluator, chunk=chunk).backward(batch)
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_is_cge_on_the_set_and_rge_on_the_rest_to_the_bit(problem):
    found = gradient_of(problem, Loop(), zo.Hybrid(CGE, RGE))
    rest = zo.RGE(1e-4, q=6, sparsity=zo.Complement(SET))
    network, _ = problem.make()
    chosen = SET.draw(zo.Parameters(network), zo.Key(0, 0))
    expected = gradient_of(problem, Loop(), rest)
    assert (expected[chosen] == 0).all()
    expected[chosen] = gradient_of(problem, Loop(), CGE)[chosen]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_chunks_that_hold_both_kinds_and_fast_evaluators_agree(problem):
    """34 coordinate queries, then 6 directions: chunks of 7 cross the border."""
    found = gradient_of(problem, Loop(), zo.Hybrid(CGE, RGE))
    assert torch.equal(gradient_of(problem, Loop(), zo.Hybrid(CGE, RGE), chunk=7), found)
    stacked = gradient_of(problem, Stacked(), zo.Hybrid(CGE, RGE), chunk=7)
    assert torch.allclose(stacked, found, rtol=1e-8, atol=1e-9 * len(found))


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher"])
def test_exact_on_the_set_and_unbiased_on_the_rest(distribution):
    """A quadratic of 12 weights, 4 in the set. False alarm: 3 z-tests at 4.5, 2e-5 in all."""
    theta, curvature, loss = quadratic(12)
    truth = curvature @ theta
    parameters = zo.Parameters(torch.nn.ParameterList([theta.clone()]))
    on_set = torch.tensor([0, 3, 4, 11])
    rest = torch.tensor([1, 2, 5, 6, 7, 8, 9, 10])
    estimator = zo.Hybrid(
        zo.CGE(0.3, zo.FixedCoordinates(on_set), central=True),
        zo.RGE(0.3, q=2, distribution=distribution),
    )
    scales = []
    for step in range(400):
        plan = estimator.plan(parameters, zo.Key(2, step))
        steps = torch.zeros(8, 12, dtype=torch.float64)
        single = plan.chunk(0, 8)
        steps[torch.arange(8), single.indices] = single.steps
        moved = theta + torch.cat([steps, plan.chunk(8, 10).steps])
        found = estimator.reduce(plan, loss(moved) - loss(theta[None]), torch.ones(10, dtype=torch.bool))
        assert torch.allclose(found[on_set], truth[on_set], rtol=0, atol=1e-12)
        scales.append(found[rest] @ truth[rest] / truth[rest].square().sum())
    scale = torch.stack(scales)
    assert abs(scale.mean() - 1) / (scale.std() / math.sqrt(len(scale))) < 4.5


def test_lost_queries_stay_where_they_belong():
    """A lost coordinate query leaves its coordinate at zero, a lost direction the mean of the others."""
    parameters = zo.Parameters(PROBLEMS[0].make()[0])
    estimator = zo.Hybrid(zo.CGE(1e-4, SET), RGE)
    plan = estimator.plan(parameters, zo.Key(0))
    differences = torch.arange(1.0, 24.0).double()
    valid = torch.ones(23, dtype=torch.bool)
    valid[[2, 20]] = False
    found = estimator.reduce(plan, differences, valid)
    chosen = plan.coordinates.indices
    assert found[chosen[2]] == 0
    expected = differences[:17] / plan.coordinates.steps
    others = torch.arange(17) != 2
    assert torch.allclose(found[chosen[others]], expected[others])
    kept = [i for i in range(6) if i != 3]
    mean = torch.stack([differences[17 + i] / 1e-4 * plan.directions.direction(i) for i in kept]).mean(dim=0)
    assert torch.allclose(found[plan.directions.support], mean)
