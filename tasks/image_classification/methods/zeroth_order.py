"""deepzero, cge, rge, sparse-rge, hybrid: gradients from values of the loss alone, made by `zo`.

deepzero is algorithm 1 of Chen et al. 2024, "DeepZero": layer ratios by ZO-GraSP before the first step; in
each layer random coordinates in that ratio, drawn anew every epoch; CGE on them; SGD.
"""

from __future__ import annotations

from typing import Any

from torch import nn

import zo
from tasks.image_classification import limits
from tasks.image_classification.config import Config
from tasks.image_classification.sparse_set import coordinates, sparse_set
from tasks.image_classification.trainer import Trained, Trainer
from tasks.workers import group


def train(trainer: Trainer, method: str) -> Trained:
    """The method's training."""
    network = trainer.network()
    chosen = sparse_set(trainer, network) if method in limits.ON_SETS else None
    sparsity = chosen.sparsity if chosen else None
    gradient = zo.LossGradient(
        network,
        trainer.objective,
        estimator(method, trainer.config, network, sparsity),
        evaluator=trainer.config.evaluator,
        seed=trainer.seed,
        process_group=group.process_group(),
    )
    spent = chosen.queries if chosen else 0
    moved = sparsity if method != "hybrid" else None  # hybrid has a gradient outside its set as well
    return trainer.descend(method, network, gradient, sparsity=moved, spent=spent)


def estimator(
    method: str, config: Config, network: nn.Module, sparsity: zo.estimators.Sparsity | None
) -> zo.estimators.Estimator[Any]:
    """The estimator of a method, on the sparse set where it takes one."""
    central = config.scheme == "central"
    each = zo.CGE(config.mu, sparsity, central)
    if method in ("deepzero", "cge"):
        return each
    q = directions(config, network)
    if method == "hybrid":
        return zo.Hybrid(each, zo.RGE(config.mu, q, central=central))
    return zo.RGE(config.mu, q, central=central, sparsity=sparsity)


def directions(config: Config, network: nn.Module) -> int:
    """Random directions in a step: as configured, or as many as deepzero has coordinates."""
    if config.directions is not None:
        return config.directions
    return coordinates(network, config.sparsity, config.dense)
