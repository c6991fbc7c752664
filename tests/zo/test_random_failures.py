"""Queries and rows lost at random, in `stacked` too: the gradient is the survivors', to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from zo.evaluators import Loop, Stacked, Step

ROWS, CHUNK = 6, 5
ESTIMATORS = {
    "cge": zo.CGE(1e-4),
    "central cge": zo.CGE(1e-4, central=True),
    "rge": zo.RGE(1e-4, q=17),
    "antithetic rge": zo.RGE(1e-4, q=9, central=True),
}


def lost(losses: torch.Tensor) -> torch.Tensor:
    """Which rows fail, a few in a hundred: the digits of their losses tell."""
    return (1e6 * losses.detach()).frac() < 0.03


def whole(network, batch):
    return network(batch).square().mean(dim=1)


def losing(network, batch):
    losses = whole(network, batch)
    return losses.masked_fill(lost(losses), float("nan"))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
    return nn.Sequential(*layers).double()


@pytest.mark.quick_cases(8)
@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
@pytest.mark.parametrize("evaluator", [Loop(), Stacked()], ids=["loop", "stacked"])
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("seed", range(4))
def test_what_was_lost_leaves_no_trace(seed, estimator, evaluator):
    generator = torch.Generator().manual_seed(seed)
    trained, batch = network(), torch.randn(ROWS, 2, 3, generator=generator).double()
    parameters = zo.estimators.Parameters(trained)
    plan = estimator.plan(parameters, zo.estimators.Key(5))
    settings = {"evaluator": evaluator, "seed": 5, "chunk": CHUNK, "max_dropped": 1.0}
    gradient = zo.LossGradient(trained, losing, estimator, **settings)
    loss = gradient.backward(batch)
    grad = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])

    step = Step(trained, parameters, whole, batch, ROWS)
    with torch.no_grad():
        base = whole(trained, batch)
        evaluate = evaluator.begin(step, base)
        starts = range(0, plan.queries, CHUNK)
        changes = torch.cat([evaluate(plan.chunk(at, min(at + CHUNK, plan.queries))) for at in starts])
    kept = ~lost(base)
    differences = changes[:, kept].mean(dim=1)
    valid = ~lost(base + changes)[:, kept].any(dim=1)
    assert kept.any() and valid.any()
    differences[~valid] = 1e300  # whatever it was
    expected = estimator.reduce(plan, differences, valid)
    assert torch.equal(grad, expected)
    assert torch.equal(loss, base[kept].mean())
    assert gradient.counts.dropped == int((~valid).sum())
    if isinstance(estimator, zo.CGE):
        alone = valid.view(-1, parameters.size).any(dim=0)  # of both signs, one side is enough
        assert bool((grad[~alone] == 0).all()) and bool((grad[alone] != 0).any())
