"""Methods whose gradient of the weights `zo` makes from values of the whole loss: ZO-SOL and TAN-SOL."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

import zo
from tasks.training import TrainingOutcome
from tasks.wake_flow.config import Config
from tasks.wake_flow.methods.in_loop import mean_of_living
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.rollout import window_loss
from tasks.wake_flow.sparse_set import sparse_set
from tasks.wake_flow.trainer import RowCount, Trained, Trainer, cosine
from tasks.workers import group

SPARSE = ("sparse-cge", "sparse-rge", "hybrid")
SURROGATE = ("control-variate", "surrogate-filled")  # they start from what stands in .grad
Batch = tuple[Tensor, Tensor]


class Gradient(Protocol):
    """A gradient of `zo`."""

    def backward(self, batch: Batch) -> Tensor:
        """Fill `.grad`; the loss."""
        ...

    def state_dict(self) -> Any:  # noqa: ANN401
        """For the checkpoint."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:  # noqa: ANN401
        """From the checkpoint."""
        ...


def zo_sol(trainer: Trainer, start: Corrector, stage: str, steps: int, learning_rate: float) -> Trained:
    """ZO-SOL: the gradient of the whole loss, the solver a black box, by the estimator that is configured."""
    config, network, rows = trainer.config, copy.deepcopy(start), RowCount()
    objective = window_loss(trainer.box, trainer.scales.velocity)
    sparse = config.estimator in SPARSE
    chosen = sparse_set(trainer, network, objective, stage) if sparse else None
    spent = chosen.queries if chosen else 0
    rows.rows += chosen.rows if chosen else 0
    rule = estimator(config, chosen.sparsity if chosen else None)
    gradient = zo.LossGradient(
        network,
        objective,
        rule,
        seed=trainer.seed,
        chunk=config.chunk,
        process_group=group.process_group(),
    )
    surrogate = _identity(trainer, network) if config.estimator in SURROGATE else None

    def costs() -> dict[str, float]:
        counts = gradient.counts
        return {"queries": spent + counts.queries, "dropped_queries": counts.dropped}

    outcome = _descend(trainer, network, gradient, rows, stage, steps, learning_rate, costs, surrogate)
    return Trained(network, outcome, rows, spent + gradient.counts.queries, gradient.counts.dropped)


def estimator(config: Config, sparsity: zo.estimators.Sparsity | None) -> zo.estimators.Estimator[Any]:
    """The estimator that the configuration names, on the sparse set where it takes one."""
    central = config.scheme == "central"
    coordinates = zo.CGE(config.mu, sparsity, central)
    if config.estimator in ("cge", "sparse-cge"):
        return coordinates
    if config.estimator == "surrogate-filled":
        return zo.SurrogateFilled(config.mu, config.coordinates, central)
    if config.estimator == "control-variate":
        return zo.ControlVariate(zo.RGE(config.mu, config.directions, central=central))
    if config.estimator == "hybrid":
        return zo.Hybrid(coordinates, zo.RGE(config.mu, config.directions, central=central))
    return zo.RGE(config.mu, config.directions, central=central, sparsity=sparsity)


def _identity(trainer: Trainer, network: Corrector) -> Callable[[Batch], None]:
    """Fills `.grad` with the gradient of the method identity; its rows are in the solver's ledger."""
    solver = zo.differentiable(trainer.box, None, tangent=zo.IdentityTangent(), seed=trainer.seed)
    objective = window_loss(solver, trainer.scales.velocity)

    def fill(batch: Batch) -> None:
        mean_of_living(objective, network, batch)[0].backward()

    return fill


def tan_sol(trainer: Trainer, start: Corrector, stage: str, steps: int, learning_rate: float) -> Trained:
    """TAN-SOL: autograd through the network and a tangent of the solver learned from probes; zo's default."""
    config, network, rows = trainer.config, copy.deepcopy(start), RowCount()
    gradient = zo.TangentGradient(
        network,
        window_loss(trainer.box, trainer.scales.velocity),
        boxes=[trainer.box],
        probes=config.probes,
        mu=config.probe_mu,
        seed=trainer.seed,
    )

    def costs() -> dict[str, float]:
        counts = gradient.counts
        trust = {name: value for name, value in gradient.metrics().items() if name.startswith("tangent_")}
        return {"queries": counts.queries, "dropped_queries": counts.dropped, **trust}

    outcome = _descend(trainer, network, gradient, rows, stage, steps, learning_rate, costs)
    counts = gradient.counts
    return Trained(network, outcome, rows, counts.queries, counts.dropped)


def _descend(
    trainer: Trainer,
    network: Corrector,
    gradient: Gradient,
    rows: RowCount,
    stage: str,
    steps: int,
    learning_rate: float,
    costs: Callable[[], Mapping[str, float]],
    surrogate: Callable[[Batch], None] | None = None,
) -> TrainingOutcome:
    """Adam with a gradient of `zo`, after a surrogate where it takes one; the solver's ledger counts rows."""
    optimizer = torch.optim.Adam(network.parameters())

    def step(i: int) -> dict[str, float]:
        cosine(optimizer, learning_rate, i, steps)
        before = trainer.solver.ledger.copy()
        optimizer.zero_grad()
        batch = trainer.batch(i)
        if surrogate is not None:
            surrogate(batch)
        loss = gradient.backward(batch)
        optimizer.step()
        spent = trainer.solver.ledger.since(before)
        ran, failed = group.total(spent.rows_run, spent.rows_failed)
        rows.rows += ran
        rows.failed += failed
        return {"loss": loss.item(), "rows": rows.rows, **costs()}

    state = {"network": network, "optimizer": optimizer, "rows": rows, "gradient": gradient}
    return trainer.train(stage, steps, step, state)
