"""Failed rows and queries: the gradient is the one of what survived, to the bit, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from tests.zo.boxes import Sine
from zo.evaluators.evaluator import Evaluator, Problem, differences
from zo.evaluators.loop import Loop
from zo.perturbation import Perturbation

NAN = float("nan")


class Sabotaged(Evaluator):
    """Loop, with chosen (query, row) losses lost."""

    def __init__(self, lost: list[tuple[int, int]]) -> None:
        self.lost = lost

    def losses(self, problem: Problem, perturbation: Perturbation) -> torch.Tensor:
        found = Loop().losses(problem, perturbation)
        for query, row in self.lost:
            found[query, row] = NAN
        return found


def objective(network, batch):
    x, lost = batch
    return network(x).square().mean(dim=1) + torch.where(lost, NAN, 0.0)


def gradient_of(network, estimator, evaluator, batch, **settings) -> torch.Tensor:
    network.zero_grad()
    zo.LossGradient(network, objective, estimator, evaluator=evaluator, **settings).backward(batch)
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 3).double(), torch.zeros(6, dtype=torch.bool)


@pytest.mark.parametrize("estimator", [zo.CGE(1e-4), zo.RGE(1e-4, q=5)], ids=["cge", "rge"])
def test_rows_lost_in_the_base_leave_the_gradient_of_the_other_rows(network, batch, estimator):
    x, lost = batch
    lost[[1, 4]] = True
    found = gradient_of(network, estimator, Loop(), (x, lost))
    alone = gradient_of(network, estimator, Loop(), (x[~lost], lost[~lost]))
    # A batch of four rows and one of six may be rounded differently by the matrix product.
    assert torch.allclose(found, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_a_lost_query_leaves_its_coordinate_at_zero_and_all_others_to_the_bit(network, batch, scheme):
    estimator = zo.CGE(1e-4, central=scheme != "forward")
    whole = gradient_of(network, estimator, Loop(), batch)
    found = gradient_of(network, estimator, Sabotaged([(3, 2), (7, 0)]), batch)
    expected = whole.clone()
    expected[[3, 7]] = 0
    assert torch.equal(found, expected)


def test_central_coordinate_is_zero_where_only_the_backward_query_was_lost(network, batch):
    estimator = zo.CGE(1e-4, central=True)
    size = sum(p.numel() for p in network.parameters())
    chunk = 2 * size  # all queries in one, so that their places in it are those in the plan
    found = gradient_of(network, estimator, Sabotaged([(size + 5, 1)]), batch, chunk=chunk)
    expected = gradient_of(network, estimator, Loop(), batch, chunk=chunk)
    expected[5] = 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("scheme", "lost"), [("forward", [2]), ("antithetic", [5])])
def test_rge_is_the_mean_over_the_directions_that_remain(network, batch, scheme, lost):
    q = 5
    estimator = zo.RGE(1e-4, q=q, central=scheme != "forward")
    found = gradient_of(network, estimator, Sabotaged([(p, 1) for p in lost]), batch, max_dropped=0.5)
    parameters = zo.Parameters(network)
    plan = estimator.plan(parameters, zo.Key(0))
    with torch.no_grad():
        base = objective(network, batch)
    change, _ = differences(
        base, Loop().losses(Problem(network, parameters, objective, batch, 6), plan.chunk(0, plan.queries))
    )
    u = plan.chunk(0, plan.queries).steps[:: plan.queries // q] / 1e-4
    expected = torch.zeros(parameters.size, dtype=torch.float64)
    for i in range(q):
        if i == 2:  # direction 2 is query 2 in forward, queries 4 and 5 in antithetic
            continue
        slope = change[i] if scheme == "forward" else (change[2 * i] - change[2 * i + 1]) / 2
        expected += slope / 1e-4 * u[i] / (q - 1)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_box_that_keeps_failures_costs_queries_not_the_step():
    torch.manual_seed(0)
    network, box = nn.Linear(4, 4).double(), Sine(limit=2.0)

    def through(network, batch):
        return box(batch + network(batch)).square().mean(dim=1)

    x = torch.zeros(3, 4).double()
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([0.1, 0.2, 1.9995, 0.3]))  # a step of 1e-3 takes the third over
    gradient = zo.LossGradient(network, through, zo.CGE(1e-3), evaluator=zo.Stacked())
    gradient.backward(x)
    assert gradient.counts.dropped == 1
    assert network.bias.grad[2] == 0
    assert box.ledger.rows_failed == 3
    expected = 2 * torch.sin(1.3 * network.bias) * 1.3 * torch.cos(1.3 * network.bias) / 4
    others = torch.tensor([0, 1, 3])
    assert torch.allclose(network.bias.grad[others], expected.detach()[others], atol=2e-3)


@pytest.mark.parametrize(
    "evaluator", [Loop(), Sabotaged([(q, 0) for q in range(4)])], ids=["base", "queries"]
)
def test_too_many_failures_are_an_error_and_grad_is_untouched(network, batch, evaluator):
    x, lost = batch
    if isinstance(evaluator, Loop):
        lost[:] = True
    gradient = zo.LossGradient(network, objective, zo.CGE(1e-4), evaluator=evaluator)
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(zo.FailedQueriesError, match="Step 0"):
        gradient.backward((x, lost))
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


def test_differences_drop_a_query_only_for_rows_that_the_base_had():
    base = torch.tensor([1.0, NAN, 3.0])
    perturbed = torch.tensor([[2.0, 9.0, 5.0], [2.0, NAN, 5.0], [NAN, 0.0, 5.0], [2.0, 0.0, float("inf")]])
    change, valid = differences(base, perturbed)
    assert valid.tolist() == [True, True, False, False]
    assert change.tolist() == [1.5, 1.5, 0.0, 0.0]
