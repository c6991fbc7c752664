"""CGE against float64 autograd and the Hessian's diagonal, for every problem and evaluator."""

from __future__ import annotations

import pytest
import torch

import zo
from tests.oracles.problems import PROBLEMS, OracleProblem

EVALUATORS = ["loop", "stacked"]  # a fallback from "stacked" is a warning, and so an error
EPS = torch.finfo(torch.float64).eps


def gradient_of(problem: OracleProblem, evaluator: str, estimator: zo.estimators.Estimator) -> torch.Tensor:
    network, batch = problem.make()
    zo.LossGradient(network, problem.objective, estimator, evaluator=evaluator, chunk=50).backward(batch)
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_forward_cge_is_the_gradient_within_its_truncation_and_rounding(problem, evaluator):
    mu = 1e-6
    network, batch = problem.make()
    truth = problem.autograd(network, batch)
    loss = problem.objective(network, batch).mean().item()
    error = (gradient_of(problem, evaluator, zo.CGE(mu=mu)) - truth).abs()
    truncation = mu / 2 * problem.curvature(network, batch).abs()
    # Second-order truncation mu^2/6 |l'''| is far below; rounding of two losses, amplified in depth.
    bound = 1.05 * truncation + 200 * EPS * abs(loss) / mu
    assert (error <= bound).all()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_order_of_accuracy(problem):
    """Halving mu halves the error of forward differences and quarters that of central ones.

    At these mu truncation is far above rounding (about 1e-12 / mu), and no step of the rollout's network
    crosses the kink of a ReLU: at 1e-3 some do, and its central differences are of first order.
    """
    network, batch = problem.make()
    truth = problem.autograd(network, batch)

    def error(mu: float, central: bool) -> float:
        grad = gradient_of(problem, "stacked", zo.CGE(mu=mu, central=central))
        return float((grad - truth).norm())

    coarse, fine = error(4e-4, central=False), error(2e-4, central=False)
    assert 1.98 < coarse / fine < 2.02
    both_ways, fine_both_ways = error(4e-4, central=True), error(2e-4, central=True)
    assert 3.8 < both_ways / fine_both_ways < 4.2
    assert fine_both_ways < 1e-2 * fine


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_sparse_cge_is_dense_cge_on_its_set_and_zero_elsewhere(problem):
    dense = gradient_of(problem, "stacked", zo.CGE(mu=1e-6))
    sparsity = zo.RandomCoordinates(17)
    sparse = gradient_of(problem, "loop", zo.CGE(mu=1e-6, sparsity=sparsity))
    network, _ = problem.make()
    chosen = sparsity.draw(zo.estimators.Parameters(network), zo.estimators.Key(0, 0))
    outside = torch.ones(len(dense), dtype=torch.bool)
    outside[chosen] = False
    assert (sparse[outside] == 0).all()
    assert torch.allclose(sparse[chosen], dense[chosen], rtol=1e-6, atol=1e-8)
