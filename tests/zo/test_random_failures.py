"""Queries and rows lost at random, in `stacked` too: the gradient is the survivors', to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from zo.evaluators.evaluator import Problem
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked

ROWS, CHUNK = 6, 5
ESTIMATORS = {
    "cge": zo.CGE(1e-4),
    "central cge": zo.CGE(1e-4, central=True),
    "rge": zo.RGE(1e-4, q=17),
    "antithetic rge": zo.RGE(1e-4, q=9, central=True),
}


class Losing:
    """An objective that loses rows: of the base at its first call, then of the queries in their order."""

    def __init__(self, base: torch.Tensor, queries: torch.Tensor) -> None:
        self.masks = torch.cat([base, queries.flatten()])
        self.seen = 0

    def __call__(self, network, batch):
        lost = self.masks[self.seen : self.seen + len(batch)]
        self.seen += len(batch)
        return network(batch).square().mean(dim=1).masked_fill(lost, float("nan"))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("evaluator", [Loop(), Stacked()], ids=["loop", "stacked"])
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("seed", range(4))
def test_what_was_lost_leaves_no_trace(seed, estimator, evaluator):
    generator = torch.Generator().manual_seed(seed)
    trained, batch = network(), torch.randn(ROWS, 2, 3, generator=generator).double()
    parameters = zo.Parameters(trained)
    plan = estimator.plan(parameters, zo.Key(5))
    lost_rows = torch.rand(ROWS, generator=generator) < 0.3
    lost_rows[seed % ROWS] = False
    lost = torch.rand(plan.queries, ROWS, generator=generator) < 0.03

    gradient = zo.LossGradient(
        trained, Losing(lost_rows, lost), estimator, evaluator=evaluator, seed=5, chunk=CHUNK, max_dropped=1.0
    )
    loss = gradient.backward(batch)
    found = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])

    def whole(network, batch):
        return network(batch).square().mean(dim=1)

    problem = Problem(trained, parameters, whole, batch, ROWS)
    with torch.no_grad():
        base = whole(trained, batch)
        chunks = range(0, plan.queries, CHUNK)
        perturbed = torch.cat(
            [
                evaluator.losses(problem, plan.chunk(start, min(start + CHUNK, plan.queries)))
                for start in chunks
            ]
        )
    kept = ~lost_rows
    differences = (perturbed[:, kept] - base[kept]).mean(dim=1)
    valid = ~lost[:, kept].any(dim=1)
    differences[~valid] = 1e300  # whatever it was
    expected = estimator.reduce(plan, differences, valid)
    assert torch.equal(found, expected)
    assert torch.equal(loss, base[kept].mean())
    assert gradient.counts.dropped == int((~valid).sum())
    if isinstance(estimator, zo.CGE):
        alone = valid.view(-1, parameters.size).all(dim=0)
        assert bool((found[~alone] == 0).all()) and bool((found[alone] != 0).any())
        assert 0 < int(alone.sum())
