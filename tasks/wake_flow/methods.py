"""How each method trains: NON on pairs, FO-SOL by autograd through the solver, others from values alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

import zo
from tasks.training import Stateful
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.rollout import window_loss
from tasks.wake_flow.sparse_set import sparse_set
from tasks.wake_flow.trainer import RowCount, Trained, Trainer, cosine
from zo.objective import Objective


class Gradient(Protocol):
    """A gradient of `zo`."""

    def backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Fill `.grad`; the loss."""
        ...


def non(trainer: Trainer, hidden: Sequence[int], stage: str = "non") -> Trained:
    """NON: on pairs of frames one solver step apart, computed before; no solver in the loop."""
    config, pairs = trainer.config, trainer.pairs
    network = trainer.corrector(hidden)
    objective = window_loss(_already_stepped, trainer.scales.velocity)
    optimizer = torch.optim.Adam(network.parameters())

    def step(i: int) -> dict[str, float]:
        cosine(optimizer, config.non_learning_rate, i, config.non_steps)
        batch = pairs.draw(zo.Key(trainer.seed, i), config.non_batch)
        optimizer.zero_grad()
        loss = objective(network, batch).mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item(), "rows": pairs.rows}

    state = {"network": network, "optimizer": optimizer}
    outcome = trainer.train(stage, config.non_steps, step, state)
    return Trained(network, outcome, RowCount(pairs.rows, pairs.failed))


def fo_sol(trainer: Trainer, start: Corrector, stage: str, steps: int, learning_rate: float) -> Trained:
    """FO-SOL: autograd through network and solver, from `start`'s weights."""
    config, network, rows = trainer.config, copy.deepcopy(start), RowCount()
    objective = window_loss(trainer.solver.step, trainer.scales.velocity)
    optimizer = torch.optim.Adam(network.parameters())

    def step(i: int) -> dict[str, float]:
        cosine(optimizer, learning_rate, i, steps)
        optimizer.zero_grad()
        loss, failed = _mean_of_living(objective, network, trainer.batch(i))
        loss.backward()
        optimizer.step()
        rows.rows += config.batch * config.unroll
        rows.failed += failed
        return {"loss": loss.item(), "rows": rows.rows}

    state = {"network": network, "optimizer": optimizer, "rows": rows}
    return Trained(network, trainer.train(stage, steps, step, state), rows)


def zo_sol(trainer: Trainer, start: Corrector) -> Trained:
    """ZO-SOL: sparse CGE of the whole loss, the solver a black box, from `start`'s weights."""
    config, network, rows = trainer.config, copy.deepcopy(start), RowCount()
    objective = window_loss(trainer.solver, trainer.scales.velocity)
    chosen = sparse_set(
        trainer.run,
        config,
        trainer.solver,
        network,
        objective,
        trainer.batch(0),
        trainer.seed,
        trainer.progress,
    )
    rows.rows += chosen.rows
    estimator = zo.CoordinateWise(config.mu, chosen.sparsity)
    gradient = zo.LossGradient(network, objective, estimator, seed=trainer.seed)

    def costs() -> dict[str, float]:
        return {
            "queries": chosen.queries + gradient.counts.queries,
            "dropped_queries": gradient.counts.dropped,
        }

    step, state = _from_values(
        trainer, network, gradient, rows, config.zo_steps, config.zo_learning_rate, costs
    )
    outcome = trainer.train("zo-sol", config.zo_steps, step, {**state, "gradient": gradient})
    counts = gradient.counts
    return Trained(network, outcome, rows, chosen.queries + counts.queries, counts.dropped)


def tan_sol(trainer: Trainer, start: Corrector) -> Trained:
    """TAN-SOL: autograd through the network and a tangent learned from probes, from `start`'s weights."""
    config, network, rows = trainer.config, copy.deepcopy(start), RowCount()
    gradient = zo.TangentGradient(
        network,
        window_loss(trainer.solver, trainer.scales.velocity),
        boxes=[trainer.solver],
        tangent=zo.DenseTangent(),
        probes=config.probes,
        mu=config.probe_mu,
        seed=trainer.seed,
    )

    def costs() -> dict[str, float]:
        counts = gradient.counts
        return {"queries": counts.queries, "dropped_queries": counts.dropped, **gradient.metrics()}

    step, state = _from_values(
        trainer, network, gradient, rows, config.large_steps, config.large_learning_rate, costs
    )
    outcome = trainer.train("tan-sol", config.large_steps, step, {**state, "gradient": gradient})
    counts = gradient.counts
    return Trained(network, outcome, rows, counts.queries, counts.dropped)


def _from_values(
    trainer: Trainer,
    network: nn.Module,
    gradient: Gradient,
    rows: RowCount,
    steps: int,
    learning_rate: float,
    costs: Callable[[], Mapping[str, float]],
) -> tuple[Callable[[int], dict[str, float]], dict[str, Stateful]]:
    """A step with a gradient of `zo`, and what is kept of it beside the gradient's own state."""
    optimizer = torch.optim.Adam(network.parameters())

    def step(i: int) -> dict[str, float]:
        cosine(optimizer, learning_rate, i, steps)
        before = trainer.solver.ledger.copy()
        optimizer.zero_grad()
        loss = gradient.backward(trainer.batch(i))
        optimizer.step()
        spent = trainer.solver.ledger.since(before)
        rows.rows += spent.rows_run
        rows.failed += spent.rows_failed
        return {"loss": loss.item(), "rows": rows.rows, **costs()}

    return step, {"network": network, "optimizer": optimizer, "rows": rows}


def _mean_of_living(
    objective: Objective, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, int]:
    """The mean loss over rows whose loss is finite, and how many are not."""
    losses = objective(network, batch)
    alive = torch.isfinite(losses)
    failed = int((~alive).sum())
    if failed:  # anew, without them: in the backward pass of a mean that leaves them out, 0 * NaN is NaN
        losses = objective(network, (batch[0][alive], batch[1][alive]))
    return losses.mean(), failed


def _already_stepped(velocity: Tensor, reynolds: Tensor) -> Tensor:
    """In NON's pairs the first frame has been through the solver."""
    return velocity
