"""CGE against float64 autograd and the Hessian's diagonal, for every problem and evaluator."""

from __future__ import annotations

import pytest
import torch

import zo
from tests.oracles.problems import PROBLEMS, OracleProblem
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked

EVALUATORS = [Loop(), Stacked()]  # Stacked bare: a fallback to loop would hide its faults
EPS = torch.finfo(torch.float64).eps


def gradient_of(problem: OracleProblem, evaluator: zo.Evaluator, estimator: zo.Estimator) -> torch.Tensor:
    network, batch = problem.make()
    zo.LossGradient(network, problem.objective, estimator, evaluator=evaluator, chunk=50).backward(batch)
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda e: type(e).__name__)
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


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_order_of_accuracy(problem, evaluator):
    """Halving mu halves the error of forward differences and quarters that of central ones."""
    network, batch = problem.make()
    truth = problem.autograd(network, batch)

    def error(scheme: str, mu: float) -> float:
        found = gradient_of(problem, evaluator, zo.CGE(mu=mu, central=scheme != "forward"))
        return float((found - truth).norm())

    forward = error("forward", 1e-3) / error("forward", 5e-4)
    central = error("central", 4e-3) / error("central", 2e-3)
    smooth = not any(isinstance(module, torch.nn.ReLU) for module in network.modules())
    assert 1.9 < forward < 2.1 or not smooth
    assert 3.7 < central < 4.3 or not smooth
    assert error("central", 1e-4) < 0.1 * error("forward", 1e-4)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_sparse_cge_is_dense_cge_on_its_set_and_zero_elsewhere(problem):
    dense = gradient_of(problem, Loop(), zo.CGE(mu=1e-6))
    sparsity = zo.RandomCoordinates(17)
    sparse = gradient_of(problem, Stacked(), zo.CGE(mu=1e-6, sparsity=sparsity))
    network, _ = problem.make()
    chosen = sparsity.draw(zo.Parameters(network), zo.Key(0, 0))
    outside = torch.ones(len(dense), dtype=torch.bool)
    outside[chosen] = False
    assert (sparse[outside] == 0).all()
    assert torch.allclose(sparse[chosen], dense[chosen], rtol=1e-6, atol=1e-8)
