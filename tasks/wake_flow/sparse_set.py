"""The sparse set of ZO-SOL: coordinates drawn over all weights alike, or with layer ratios from ZO-GraSP."""

from __future__ import annotations

import json
from dataclasses import dataclass

import zo
from tasks.runs import atomic
from tasks.runs.journal import journaled
from tasks.wake_flow.networks import Corrector
from tasks.wake_flow.trainer import Trainer
from tasks.workers import group
from zo.objective import Objective


@dataclass(frozen=True)
class SparseSet:
    """A rule for the sets of a training, and what it cost to find.

    Attributes:
        sparsity: draws the set of each step.
        queries, rows: spent on the layer ratios.
    """

    sparsity: zo.estimators.Sparsity
    queries: int = 0
    rows: int = 0


def sparse_set(trainer: Trainer, network: Corrector, objective: Objective, stage: str) -> SparseSet:
    """The rule that the configuration names; layer ratios are found once, printed, and kept with the run."""
    config, seed = trainer.config, trainer.seed
    if config.ratios == "uniform":
        return SparseSet(zo.RandomCoordinates(config.coordinates))
    name = f"layer_ratios-seed-{seed}{stage.removeprefix('zo-sol')}.json"
    path = trainer.run.path / name
    if not path.exists():
        before = trainer.solver.ledger.copy()
        folder, rank = group.journal_folder(trainer.run.path), group.rank()
        with journaled(folder, path.stem.replace("_", "-"), trainer.solver.ledger, rank=rank) as journal:
            scores = zo.pruning.scores(
                config.ratios,
                network,
                objective,
                trainer.batch(0),
                seed=seed,
                journal=journal,
                process_group=group.process_group(),
            )
            size = sum(parameter.numel() for parameter in network.parameters())
            ratios = zo.pruning.layer_ratios(scores, sparsity=1 - config.coordinates / size)
            (rows,) = group.total(trainer.solver.ledger.since(before).rows_run)
            atomic.write_json(path, {"ratios": ratios.to_dict(), "queries": scores.queries, "rows": rows})
        trainer.progress.say(
            f"Layer ratios of seed {seed} by {config.ratios} ({scores.queries} queries):\n{ratios}"
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    ratios = zo.pruning.LayerRatios.from_dict(saved["ratios"])
    return SparseSet(zo.LayerwiseCoordinates(ratios), saved["queries"], saved["rows"])
