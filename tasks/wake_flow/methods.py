"""How each method trains: NON on pairs, FO-SOL by autograd through the solver, ZO-SOL from values alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import zo
from simulators.wake_flow.box import WakeFlow
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.training import Stateful, TrainingOutcome, train
from tasks.wake_flow.config import Config
from tasks.wake_flow.data import WakeData
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.rollout import rollout_errors, window_loss


class RowCount:
    """Solver rows that a stage has run in training; kept in its checkpoint."""

    def __init__(self, rows: int = 0) -> None:
        self.rows = rows

    def state_dict(self) -> dict[str, int]:
        """The count."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a count."""
        self.rows = state_dict["rows"]


@dataclass(frozen=True)
class Trained:
    """A method's network with the weights that validation chose, and what its training took."""

    network: Corrector
    outcome: TrainingOutcome
    rows: int
    queries: int = 0


@dataclass(frozen=True)
class Trainer:
    """What the methods of one seed share.

    Attributes:
        run, config, data, progress: of the run.
        solver: the coarse solver as a black box.
        seed: of the run's seeds; it gives first weights and all draws.
    """

    run: Run
    config: Config
    data: WakeData
    solver: WakeFlow
    seed: int
    progress: Progress

    def corrector(self, like: Corrector | None = None) -> Corrector:
        """A network with this seed's first weights, or a copy of another's."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            network = Corrector(self.config.channels, self.data.velocity_scale, self.data.reynolds_scale)
        if like is not None:
            network.load_state_dict(like.state_dict())
        return network

    def non(self) -> Trained:
        """NON: one solver step from reference frames, computed once; then the solver is out of the loop."""
        config, frames = self.config, self.data.train.frames
        network, rows = self.corrector(), RowCount()
        loss_of = window_loss(_look_up, self.data.velocity_scale)
        optimizer = torch.optim.Adam(network.parameters(), config.non_learning_rate)
        before = self.solver.ledger.rows_run
        reynolds = self.data.train.reynolds[:, None].expand(frames.shape[:2])
        stepped = self.solver(frames[:, :-1], reynolds[:, :-1].contiguous())
        rows.rows = self.solver.ledger.rows_run - before
        pairs = torch.stack([stepped, frames[:, 1:]], dim=2).flatten(0, 1)
        pair_reynolds = reynolds[:, :-1].flatten()

        def step(i: int) -> dict[str, float]:
            generator = zo.Key(self.seed, i).generator(PAIRS)
            chosen = torch.randint(len(pairs), (config.non_batch,), generator=generator)
            optimizer.zero_grad()
            loss = loss_of(network, (pairs[chosen], pair_reynolds[chosen])).mean()
            loss.backward()
            optimizer.step()
            return {"loss": loss.item(), "rows": rows.rows}

        state = {"network": network, "optimizer": optimizer, "rows": rows}
        outcome = self._train("non", config.non_steps, step, state)
        return Trained(network, outcome, rows.rows)

    def fo_sol(self, start: Corrector) -> Trained:
        """FO-SOL: autograd through network and solver, from `start`'s weights."""
        config = self.config
        network, rows = self.corrector(like=start), RowCount()
        objective = window_loss(self.solver.step, self.data.velocity_scale)
        optimizer = torch.optim.Adam(network.parameters(), config.fo_learning_rate)

        def step(i: int) -> dict[str, float]:
            optimizer.zero_grad()
            loss = objective(network, self._batch(i)).mean()
            loss.backward()
            optimizer.step()
            rows.rows += config.batch * config.unroll
            return {"loss": loss.item(), "rows": rows.rows}

        state = {"network": network, "optimizer": optimizer, "rows": rows}
        outcome = self._train("fo-sol", config.fo_steps, step, state)
        return Trained(network, outcome, rows.rows)

    def zo_sol(self, start: Corrector) -> Trained:
        """ZO-SOL: sparse CGE of the whole loss, the solver a black box, from `start`'s weights."""
        config = self.config
        network, rows = self.corrector(like=start), RowCount()
        gradient = zo.LossGradient(
            network,
            window_loss(self.solver, self.data.velocity_scale),
            zo.CoordinateWise(mu=config.mu, sparsity=zo.RandomCoordinates(config.coordinates)),
            seed=self.seed,
        )
        optimizer = torch.optim.Adam(network.parameters(), config.zo_learning_rate)

        def step(i: int) -> dict[str, float]:
            before = self.solver.ledger.rows_run
            optimizer.zero_grad()
            loss = gradient.backward(self._batch(i))
            optimizer.step()
            rows.rows += self.solver.ledger.rows_run - before
            counts = gradient.counts
            return {
                "loss": loss.item(),
                "rows": rows.rows,
                "queries": counts.queries,
                "dropped_queries": counts.dropped,
            }

        state = {"network": network, "optimizer": optimizer, "gradient": gradient, "rows": rows}
        outcome = self._train("zo-sol", config.zo_steps, step, state)
        return Trained(network, outcome, rows.rows, gradient.counts.queries)

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


PAIRS = 102  # first word of the key's path for NON's draws


def _look_up(velocity: Tensor, reynolds: Tensor) -> Any:  # noqa: ANN401
    """In NON's pairs the first frame has been through the solver already."""
    return velocity
