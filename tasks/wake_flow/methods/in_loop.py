"""Methods that differentiate the rollout by autograd: how they come by the solver's derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import zo
from tasks.training import Stateful, TrainingOutcome
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.rollout import Solver, window_loss
from tasks.wake_flow.trainer import RowCount, Trained, Trainer, cosine
from tasks.workers import group
from zo.objective import Objective


def fo_sol(trainer: Trainer, start: Corrector, stage: str, steps: int, learning_rate: float) -> Trained:
    """FO-SOL: autograd through network and solver, from `start`'s weights."""
    rows = RowCount()

    def solver(velocity: Tensor, reynolds: Tensor) -> Tensor:
        rows.rows += len(velocity)  # the differentiable step has no ledger
        return trainer.solver.step(velocity, reynolds)

    network, outcome = _descend(trainer, start, stage, steps, learning_rate, solver, rows, {}, dict)
    return Trained(network, outcome, rows)


def chain(trainer: Trainer, start: Corrector, stage: str, steps: int, learning_rate: float) -> Trained:
    """chain: autograd through the network; the solver's vector-Jacobian products from function values.

    In backward each row of each solver step has directions of its own; see `zo.differentiable`.
    """
    config = trainer.config
    directions = zo.RowRGE(config.chain_mu, config.chain_queries)
    return _around_box(trainer, start, stage, steps, learning_rate, directions, None)


def identity(trainer: Trainer, start: Corrector, stage: str, steps: int, learning_rate: float) -> Trained:
    """identity: autograd through the network, as if the solver's derivative were one; it costs no query."""
    return _around_box(trainer, start, stage, steps, learning_rate, None, zo.IdentityTangent())


def _around_box(
    trainer: Trainer,
    start: Corrector,
    stage: str,
    steps: int,
    learning_rate: float,
    directions: zo.RowRGE | None,
    tangent: zo.tangents.Tangent | None,
) -> Trained:
    rows = RowCount()
    solver = zo.differentiable(trainer.box, directions, tangent=tangent, seed=trainer.seed)
    each = 0 if directions is None else directions.q

    def costs() -> dict[str, float]:
        return {"queries": each * solver.counts.calls, "dropped_queries": solver.counts.dropped}

    state: dict[str, Stateful] = {"solver": solver}
    network, outcome = _descend(
        trainer, start, stage, steps, learning_rate, solver, rows, state, costs if each else dict
    )
    return Trained(network, outcome, rows, each * solver.counts.calls, solver.counts.dropped)


def _descend(
    trainer: Trainer,
    start: Corrector,
    stage: str,
    steps: int,
    learning_rate: float,
    solver: Solver,
    rows: RowCount,
    state: Mapping[str, Stateful],
    costs: Callable[[], Mapping[str, float]],
) -> tuple[Corrector, TrainingOutcome]:
    """Adam on the mean loss of the windows, through `solver`; the network that validation chose."""
    network = copy.deepcopy(start)
    objective = window_loss(solver, trainer.scales.velocity)
    optimizer = torch.optim.Adam(network.parameters())

    def step(i: int) -> dict[str, float]:
        cosine(optimizer, learning_rate, i, steps)
        before = trainer.solver.ledger.copy()
        optimizer.zero_grad()
        loss, lost = mean_of_living(objective, network, trainer.batch(i))
        loss.backward()
        optimizer.step()
        spent = trainer.solver.ledger.since(before)
        ran, failed = group.total(spent.rows_run, spent.rows_failed)
        rows.rows += ran
        rows.failed += failed if ran else lost  # without a ledger, lost windows
        return {"loss": loss.item(), "rows": rows.rows, **costs()}

    kept = {"network": network, "optimizer": optimizer, "rows": rows, **state}
    return network, trainer.train(stage, steps, step, kept)


def mean_of_living(
    objective: Objective, network: torch.nn.Module, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor, int]:
    """The mean loss over rows whose loss is finite, and how many are not."""
    losses = objective(network, batch)
    alive = torch.isfinite(losses)
    lost = int((~alive).sum())
    if lost:  # anew, without them: in the backward pass of a mean that leaves them out, 0 * NaN is NaN
        losses = objective(network, (batch[0][alive], batch[1][alive]))
    return losses.mean(), lost
