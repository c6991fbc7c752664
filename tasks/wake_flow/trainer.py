"""`Trainer`: what the methods of one seed share: data, first weights, batches, and the loop that trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import zo
from simulators.wake_flow.box import WakeFlow
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.training import Stateful, TrainingOutcome, train
from tasks.wake_flow.config import Config
from tasks.wake_flow.data import Pairs, WakeData
from tasks.wake_flow.networks import Corrector, Scales, layers
from tasks.wake_flow.rollout import rollout_errors
from tasks.workers import group


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
        solver: the coarse solver as a black box; its ledger counts the rows of this process.
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

    @cached_property
    def box(self) -> zo.SharedRows:
        """The solver as training asks it: of several processes that ask alike one answers all."""
        return zo.SharedRows(self.solver, group.process_group())

    def corrector(self, hidden: Sequence[int], blocks: int = 0) -> Corrector:
        """A network with this seed's first weights; see `networks.layers`."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            return Corrector(layers(hidden, blocks), self.scales).to(self.config.device)

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        """Windows for step i, as long as the curriculum says: the same for every method."""
        unroll = self.config.unroll_at(i)
        return self.data.train.windows(zo.estimators.Key(self.seed, i), self.config.batch, unroll)

    def train(
        self,
        name: str,
        steps: int,
        step: Callable[[int], Mapping[str, float]],
        state: Mapping[str, Stateful],
    ) -> TrainingOutcome:
        """Take the steps that are left of a stage, which validates and checkpoints on its way."""
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
            boxes=[self.solver],
        )


def cosine(optimizer: torch.optim.Optimizer, start: float, step: int, steps: int) -> None:
    """Set the learning rate of a step: from `start` down to zero; it hangs on the step alone."""
    for weights in optimizer.param_groups:
        weights["lr"] = start * 0.5 * (1 + math.cos(math.pi * step / steps))
