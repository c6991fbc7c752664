"""Methods without the solver in the loop: pairs of frames are made beforehand, and learned one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import zo
from tasks.wake_flow import precomputed
from tasks.wake_flow.data import Pairs, mirrored
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.rollout import window_loss
from tasks.wake_flow.trainer import RowCount, Trained, Trainer, cosine

MIRRORED = 103  # first word of the key's path for these draws; those of the data are 101 and 102
Batch = tuple[Tensor, Tensor]


def non(
    trainer: Trainer,
    hidden: Sequence[int],
    stage: str = "non",
    blocks: int = 0,
    *,
    steps: int | None = None,
) -> Trained:
    """NON: on pairs of frames one solver step apart; as many steps as the configuration says, if None."""
    config, pairs = trainer.config, trainer.pairs

    def batch(i: int) -> Batch:
        return pairs.draw(zo.estimators.Key(trainer.seed, i), config.non_batch)

    network = trainer.corrector(hidden, blocks)
    count = config.non_steps if steps is None else steps
    return _on_pairs(trainer, network, stage, count, config.non_learning_rate, pairs, batch)


def pre(
    trainer: Trainer, hidden: Sequence[int], stage: str = "pre", blocks: int = 0, *, beta: float = 1.0
) -> Trained:
    """PRE: on corrections that were fitted to the fine reference beforehand; each pair may come mirrored.

    Args:
        trainer: of the seed.
        hidden: of the network.
        stage: of the run.
        blocks: of the network.
        beta: see `precomputed.corrections`; 0 is PRE-SR.
    """
    config = trainer.config
    progress = trainer.progress.counter("fine flows for PRE (PhiFlow)")
    pairs = precomputed.corrections(config, trainer.data, trainer.solver, beta, progress)

    def batch(i: int) -> Batch:
        key = zo.estimators.Key(trainer.seed, i)
        frames, reynolds = pairs.draw(key, config.pre_batch)
        chosen = torch.rand(len(frames), generator=key.generator(MIRRORED)) < 0.5
        turn = chosen.to(frames.device).view(-1, 1, 1, 1, 1)
        return torch.where(turn, mirrored(frames), frames), reynolds

    network = trainer.corrector(hidden, blocks)
    return _on_pairs(trainer, network, stage, config.pre_steps, config.pre_learning_rate, pairs, batch)


def _on_pairs(
    trainer: Trainer,
    network: Corrector,
    stage: str,
    steps: int,
    learning_rate: float,
    pairs: Pairs,
    batch: Callable[[int], Batch],
) -> Trained:
    objective = window_loss(_already_stepped, trainer.scales.velocity)
    optimizer = torch.optim.Adam(network.parameters())

    def step(i: int) -> dict[str, float]:
        cosine(optimizer, learning_rate, i, steps)
        drawn = batch(i)
        optimizer.zero_grad()
        loss = objective(network, drawn).mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item(), "rows": pairs.rows}

    state = {"network": network, "optimizer": optimizer}
    outcome = trainer.train(stage, steps, step, state)
    return Trained(network, outcome, RowCount(pairs.rows, pairs.failed))


def _already_stepped(velocity: Tensor, reynolds: Tensor) -> Tensor:
    """In a pair the first frame has been through the solver."""
    return velocity
