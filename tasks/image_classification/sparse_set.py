"""Sparse sets: which weights are scored, the layer ratios of a run, and the rule that draws a step's set."""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch import nn

import zo
from tasks.image_classification import limits
from tasks.image_classification.trainer import Trainer
from tasks.runs import atomic
from tasks.runs.journal import Journal, journaled
from tasks.workers import group
from zo.pruning import LayerRatios

# Of each layer stays, whatever its rank, this part of what an even spread would leave it. One percent of each
# layer would leave nothing to distribute at sparsity 0.99.
SHARE = 0.1


@dataclass(frozen=True)
class SparseSet:
    """A rule for the sets of a training, and what it cost to find.

    Attributes:
        sparsity: draws the set of each step.
        ratios: of the layers.
        queries: spent on the ratios.
    """

    sparsity: zo.LayerwiseCoordinates
    ratios: LayerRatios
    queries: int


def dense_names(network: nn.Module, dense: str) -> list[str]:
    """Parameters that are in every set: none, all but matrices and kernels, or those and the last layer.

    Args:
        network: as it was made.
        dense: "none", "norms" or "norms and last".
    """
    named = _trained(network)
    if dense == "none":
        return []
    kept = {name for name, tensor in named.items() if tensor.ndim < 2}
    if dense == "norms and last":
        matrices = [name for name in named if name not in kept]
        kept.add(matrices[-1])
    return [name for name in named if name in kept]


def check_sparsity(network: nn.Module, sparsity: float, dense: str) -> None:
    """Refuse, before anything is trained, a sparsity that leaves some layer without a weight.

    Raises:
        ConfigurationError: fewer weights are left than there are layers to score, or there are none to score.
    """
    scored = _scored(network, dense)
    sizes = [tensor.numel() for tensor in scored.values()]
    if not sizes:
        raise limits.refuse("dense", "weights that are not dense", dense)
    kept = round((1 - sparsity) * sum(sizes))
    if kept < len(sizes):
        highest = 1 - len(sizes) / sum(sizes)
        raise limits.refuse(
            "sparsity",
            f"at most {highest:.4g}, so that each of the {len(sizes)} layers keeps a weight of the "
            f"{sum(sizes):,} scored ones (this one keeps {kept} in all)",
            sparsity,
        )


def coordinates(network: nn.Module, sparsity: float, dense: str) -> int:
    """Weights in a step's set: the part of the scored ones that is left, and all dense ones."""
    scored = _scored(network, dense)
    total = sum(tensor.numel() for tensor in _trained(network).values())
    size = sum(tensor.numel() for tensor in scored.values())
    return round((1 - sparsity) * size) + total - size


def sparse_set(trainer: Trainer, network: nn.Module) -> SparseSet:
    """The rule of the configuration. Layer ratios are found once a seed, printed, and kept with the run."""
    config = trainer.config
    path = trainer.run.path / f"layer_ratios-seed-{trainer.seed}.json"
    if not path.exists():
        folder, rank = group.journal_folder(trainer.run.path), group.rank()
        with journaled(folder, path.stem.replace("_", "-"), rank=rank) as journal:
            queries, ratios = 0, uniform_ratios(network, config.sparsity, config.dense)
            if config.ratios != "uniform":
                scored, least = (
                    scores(trainer, network, config.ratios, journal),
                    SHARE * (1 - config.sparsity),
                )
                queries = scored.queries
                ratios = zo.pruning.layer_ratios(scored, config.sparsity, minimum=least)
            atomic.write_json(path, {"ratios": ratios.to_dict(), "queries": queries})
        trainer.progress.say(f"Layer ratios of seed {trainer.seed} ({queries} queries):\n{ratios}")
    saved = json.loads(path.read_text(encoding="utf-8"))
    ratios = LayerRatios.from_dict(saved["ratios"])
    return SparseSet(rule(trainer, ratios), ratios, saved["queries"])


def rule(trainer: Trainer, ratios: LayerRatios) -> zo.LayerwiseCoordinates:
    """How sets are drawn with these ratios: how often anew, and how the sparsity rises."""
    config = trainer.config
    every = {"epoch": trainer.epochs.steps, "steps": config.redraw_steps, "never": None}[config.redraw]
    if config.gradual == "constant":
        return zo.LayerwiseCoordinates(ratios, every)
    rising = max(1, round(config.gradual_part * trainer.steps))
    schedule = "linear" if config.gradual == "linear" else "cubic"
    return zo.LayerwiseCoordinates(ratios, every, schedule, rising)


def scores(
    trainer: Trainer, network: nn.Module, method: str, journal: Journal | None = None
) -> zo.pruning.Scores:
    """Scores of the weights that are not dense, on the first training images of the seed's first epoch."""
    config = trainer.config
    batch = trainer.scoring_batch()
    return zo.pruning.scores(
        method,
        network,
        trainer.objective,
        batch,
        dense=dense_names(network, config.dense) or None,
        mu=config.mu,
        q=config.pruning_directions,
        inputs=batch[0],
        sparsity=config.sparsity,
        seed=trainer.seed,
        evaluator=config.evaluator,
        journal=journal,
        process_group=group.process_group(),
    )


def uniform_ratios(network: nn.Module, sparsity: float, dense: str) -> LayerRatios:
    """The same part of every layer, and at least one weight."""
    whole = set(dense_names(network, dense))
    layers = []
    for name, tensor in _trained(network).items():
        kept = tensor.numel() if name in whole else max(1, round((1 - sparsity) * tensor.numel()))
        layers.append(zo.pruning.Layer(name, tensor.numel(), kept))
    return LayerRatios("uniform", sparsity, tuple(layers))


def _scored(network: nn.Module, dense: str) -> dict[str, nn.Parameter]:
    whole = set(dense_names(network, dense))
    return {name: tensor for name, tensor in _trained(network).items() if name not in whole}


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """Those that are trained: what a network of the user's own keeps fixed is in no set."""
    parameters = zo.estimators.Parameters(network)
    return dict(zip(parameters.names, parameters.tensors, strict=True))
