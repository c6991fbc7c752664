"""How each method trains: NON on pairs, FO-SOL by autograd through the solver, ZO-SOL from values alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import zo
from simulators.wake_flow.box import WakeFlow
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.training import Stateful, TrainingOutcome, train
from tasks.wake_flow.config import Config
from tasks.wake_flow.data import Pairs, WakeData
from tasks.wake_flow.networks import Corrector, Scales
from tasks.wake_flow.rollout import rollout_errors, window_loss
from tasks.wake_flow.sparse_set import sparse_set
from zo.objective import Objective


class RowCount:
    """Solver rows that a stage has run in training, and that failed; kept in its checkpoint."""

    def __init__(self, rows: int = 0, failed: int = 0) -> None:
        self.rows = rows
        self.failed = failed

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"rows": self.rows, "failed": self.failed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from counts."""
        self.rows, self.failed = state_dict["rows"], state_dict["failed"]


@dataclass(frozen=True)
class Trained:
    """A method's network with the weights that validation chose, and what its training took."""

    network: Corrector
    outcome: TrainingOutcome
    rows: RowCount
    queries: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Trainer:
    """What the methods of one seed share.

    Attributes:
        run, config, data, pairs, scales, progress: of the run.
        solver: the coarse solver as a black box.
        seed: of the run's seeds; it gives first weights and all draws.
    """

    run: Run
    config: Config
    data: WakeData
    pairs: Pairs
    scales: Scales
    solver: WakeFlow
    seed: int
    progress: Progress

    def non(self) -> Trained:
        """NON: on pairs of frames one solver step apart, computed before; no solver in the loop."""
        network = self._corrector()
        objective = window_loss(_already_stepped, self.scales.velocity)
        optimizer = torch.optim.Adam(network.parameters())

        def step(i: int) -> dict[str, float]:
            _cosine(optimizer, self.config.non_learning_rate, i, self.config.non_steps)
            batch = self.pairs.draw(zo.Key(self.seed, i), self.config.non_batch)
            optimizer.zero_grad()
            loss = objective(network, batch).mean()
            loss.backward()
            optimizer.step()
            return {"loss": loss.item(), "rows": self.pairs.rows}

        state = {"network": network, "optimizer": optimizer}
        outcome = self._train("non", self.config.non_steps, step, state)
        return Trained(network, outcome, RowCount(self.pairs.rows, self.pairs.failed))

    def fo_sol(self, start: Corrector) -> Trained:
        """FO-SOL: autograd through network and solver, from `start`'s weights."""
        network, rows = self._corrector(like=start), RowCount()
        objective = window_loss(self.solver.step, self.scales.velocity)
        optimizer = torch.optim.Adam(network.parameters())

        def step(i: int) -> dict[str, float]:
            _cosine(optimizer, self.config.fo_learning_rate, i, self.config.fo_steps)
            optimizer.zero_grad()
            loss, failed = _mean_of_living(objective, network, self._batch(i))
            loss.backward()
            optimizer.step()
            rows.rows += self.config.batch * self.config.unroll
            rows.failed += failed
            return {"loss": loss.item(), "rows": rows.rows}

        state = {"network": network, "optimizer": optimizer, "rows": rows}
        outcome = self._train("fo-sol", self.config.fo_steps, step, state)
        return Trained(network, outcome, rows)

    def zo_sol(self, start: Corrector) -> Trained:
        """ZO-SOL: sparse CGE of the whole loss, the solver a black box, from `start`'s weights."""
        network, rows = self._corrector(like=start), RowCount()
        objective = window_loss(self.solver, self.scales.velocity)
        chosen = sparse_set(
            self.run, self.config, self.solver, network, objective, self._batch(0), self.seed, self.progress
        )
        rows.rows += chosen.rows
        estimator = zo.CoordinateWise(self.config.mu, chosen.sparsity)
        gradient = zo.LossGradient(network, objective, estimator, seed=self.seed)
        optimizer = torch.optim.Adam(network.parameters())

        def step(i: int) -> dict[str, float]:
            _cosine(optimizer, self.config.zo_learning_rate, i, self.config.zo_steps)
            before = self.solver.ledger.copy()
            optimizer.zero_grad()
            loss = gradient.backward(self._batch(i))
            optimizer.step()
            spent = self.solver.ledger.since(before)
            rows.rows += spent.rows_run
            rows.failed += spent.rows_failed
            counts = gradient.counts
            return {
                "loss": loss.item(),
                "rows": rows.rows,
                "queries": chosen.queries + counts.queries,
                "dropped_queries": counts.dropped,
            }

        state = {"network": network, "optimizer": optimizer, "gradient": gradient, "rows": rows}
        outcome = self._train("zo-sol", self.config.zo_steps, step, state)
        counts = gradient.counts
        return Trained(network, outcome, rows, chosen.queries + counts.queries, counts.dropped)

    def _corrector(self, like: Corrector | None = None) -> Corrector:
        """A network with this seed's first weights, or a copy of another's."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            network = Corrector(self.config.channels, self.scales)
        if like is not None:
            network.load_state_dict(like.state_dict())
        return network

    def _batch(self, i: int) -> tuple[Tensor, Tensor]:
        return self.data.train.windows(zo.Key(self.seed, i), self.config.batch, self.config.unroll)

    def _train(
        self,
        name: str,
        steps: int,
        step: Callable[[int], Mapping[str, float]],
        state: Mapping[str, Stateful],
    ) -> TrainingOutcome:
        config, network = self.config, state["network"]
        assert isinstance(network, nn.Module)

        def validate() -> float:
            starts = config.validation_starts
            errors = rollout_errors(network, self.solver, self.data.validation, starts, config.horizon)
            return errors.mean().item()  # NaN where a rollout blew up: such weights are never chosen

        return train(
            self.run,
            f"seed-{self.seed}/{name}",
            steps=steps,
            step=step,
            state=state,
            model="network",
            validate=validate,
            validate_every=config.validate_every,
            checkpoint_every=config.checkpoint_every,
            progress=self.progress,
        )


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


def _cosine(optimizer: torch.optim.Optimizer, start: float, step: int, steps: int) -> None:
    """Set the learning rate of a step: from `start` down to zero; it hangs on the step alone."""
    for group in optimizer.param_groups:
        group["lr"] = start * 0.5 * (1 + math.cos(math.pi * step / steps))


def _already_stepped(velocity: Tensor, reynolds: Tensor) -> Tensor:
    """In NON's pairs the first frame has been through the solver."""
    return velocity
