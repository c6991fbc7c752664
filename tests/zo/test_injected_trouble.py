"""Training through a box that is noisy, slow and fails: no row ends it, and none bends a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, Retrying
from tests.blackbox.wrappers.injecting import Injecting
from tests.zo.row_boxes import FromTorch

STATE = (ArraySpec("state", (3,), "float32"),)
WANTED = torch.tensor([0.3, -0.2, 0.5])


def response(x):
    return torch.sin(x) + 0.1 * x.roll(1, dims=-1)


def loss_with(solver):
    def objective(network, batch):
        return (solver(network(batch)) - WANTED).square().sum(dim=1)

    return objective


def gradients(kind, solver, network):
    if kind == "tangent":
        return zo.TangentGradient(network, loss_with(solver), boxes=[solver], seed=0)
    estimator = zo.CGE(mu=0.3, central=True)
    return zo.LossGradient(network, loss_with(solver), estimator, max_dropped=0.9, evaluator="stacked")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.NoiseWarning", "ignore::zo.errors.TangentWarning")  # rightly
@pytest.mark.parametrize("kind", ["tangent", "sparse"])
def test_a_noisy_slow_and_failing_box_is_trained_through(kind):
    torch.manual_seed(0)
    network = nn.Linear(2, 3)
    inner = FromTorch(response, STATE, STATE)
    inner.failures = "keep"
    trouble = Injecting(inner, noise=1e-3, delay=1e-5, failing=0.1, seed=1)
    solver = Retrying(trouble, attempts=2)  # of a tenth that fail, a hundredth is left
    gradient = gradients(kind, solver, network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    batch = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = loss_with(response)(network, batch).mean()
    for _ in range(60):
        optimizer.zero_grad()
        gradient.backward(batch)
        optimizer.step()
    with torch.no_grad():
        after = loss_with(response)(network, batch).mean()
    assert after < before / 20
    ledger = solver.ledger
    assert 0 < ledger.rows_failed < 0.03 * ledger.rows_asked  # of 1 % expected
    assert ledger.rows_run > 1.05 * ledger.rows_asked  # the second attempts are paid for, and counted
    counts = gradient.counts
    assert (counts.lost if kind == "tangent" else counts.dropped) > 0
