"""Sparse sets: the scored weights, a run's layer ratios and pruning mask, the rule of a step's set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import zo
from tasks.applications.image_classification.config import Config
from tasks.configuration import refused
from tasks.folder import checkpoint, stamp
from tasks.folder.journal import Journal
from tasks.methods import kept_ratios
from tasks.training.setup import Setup
from tasks.workers import group
from zo.estimators.ratios import LayerRatios

# Of each layer stays, whatever its rank, this part of what an even spread would leave it. One percent of each
# layer would leave nothing to distribute at sparsity 0.99.
SHARE = 0.1


def dense_names(network: nn.Module) -> list[str]:
    """Parameters that are in every set, as in the published code: all biases and norms."""
    return [name for name, tensor in _trained(network).items() if tensor.ndim < 2]


def check_sparsity(network: nn.Module, config: Config, *, on_sets: bool) -> None:
    """Refuse, before anything is trained, a sparsity that leaves some layer without a weight.

    Args:
        network: The network that is trained.
        config: The configuration, with the sparsity.
        on_sets: Whether a method trains on sets.

    Raises:
        ConfigurationError: Fewer weights are left than there are layers to score.
    """
    sparsity, trained = config.sparsity, _trained(network).values()
    sizes = [tensor.numel() for tensor in trained if tensor.ndim > 1]
    weight_count = round((1 - sparsity) * sum(sizes))
    if on_sets and weight_count < len(sizes):
        highest = 1 - len(sizes) / sum(sizes)
        raise refused(
            "sparsity",
            f"at most {highest:.4g}, so that each of the {len(sizes)} layers keeps a weight of the "
            f"{sum(sizes):,} scored ones (this one keeps {weight_count} in all)",
            sparsity,
        )


def coordinates(network: nn.Module, config: Config) -> int:
    """Weights in a step's set: the part of the scored ones that is left, and all dense ones."""
    trained = _trained(network).values()
    total = sum(tensor.numel() for tensor in trained)
    size = sum(tensor.numel() for tensor in trained if tensor.ndim > 1)
    return round((1 - config.sparsity) * size) + total - size


def sparse_set(setup: Setup) -> tuple[zo.estimators.LayerwiseCoordinates, int]:
    """The rule of the configuration, with the layer ratios of the seed; and the queries spent on these."""
    config: Config = setup.config

    def find(journal: Journal) -> tuple[LayerRatios, int]:
        if config.ratios == "uniform":
            return uniform_ratios(setup.network, config.sparsity), 0
        scored = scores(setup, config.ratios, journal)
        least = SHARE * (1 - config.sparsity)
        return zo.pruning.layer_ratios(scored, config.sparsity, minimum=least), scored.queries

    layers, queries = kept_ratios.kept(setup, ratios_name(setup.seed), find)
    problem: Any = setup.problem  # an ImageClassification, whose module imports this one
    return rule(config, layers, problem.epoch_steps), queries


def ratios_name(seed: int) -> str:
    """The file of a seed's layer ratios in a run folder, without its ending."""
    return f"layer_ratios-seed-{seed}"


def rule(config: Config, ratios: LayerRatios, epoch: int) -> zo.estimators.LayerwiseCoordinates:
    """Make the rule of drawing sets with these ratios, where a pass over the images has `epoch` steps."""
    every = {"epoch": epoch, "steps": config.redraw_steps, "never": None}[config.redraw]
    return zo.estimators.LayerwiseCoordinates(ratios, every)


def kept_mask(setup: Setup) -> Tensor:
    """GraSP's mask of a run `(parameters,)`: computed once a seed, and kept with the run.

    A GPU may round the scores otherwise the next time, and another mask would not fit the weights of a
    checkpoint.
    """
    path, of = setup.run.path / f"grasp_mask-seed-{setup.seed}.pt", stamp.settings(setup.run)
    if not (path.exists() and stamp.fits(setup.run, checkpoint.load(path), of)):
        checkpoint.save(path, {"kept": grasp_mask(setup), stamp.OF: of})
    return checkpoint.load(path)["kept"]


def grasp_mask(setup: Setup) -> Tensor:
    """Say where GraSP keeps a weight, and all dense ones: `(parameters,)` bool, flat."""
    sparsity = setup.config.sparsity
    scored = scores(setup, "grasp")
    mask = zo.pruning.kept_weights(scored, sparsity, minimum=SHARE * (1 - sparsity))
    inside = dict(zip(scored.parameters.names, scored.parameters.split(mask), strict=True))
    everything = [
        inside.get(name, torch.ones(tensor.shape, dtype=torch.bool)).flatten()
        for name, tensor in _trained(setup.network).items()
    ]
    return torch.cat(everything)


def scores(setup: Setup, method: str, journal: Journal | None = None) -> zo.pruning.Scores:
    """Scores of the weights that are not dense, on the images that the seed draws for it."""
    config, network = setup.config, setup.network
    problem: Any = setup.problem
    batch = problem.scoring_batch(setup.seed)
    return zo.pruning.scores(
        method,
        network,
        setup.objective,
        batch,
        dense=dense_names(network) or None,
        mu=config.zeroth_order.mu,
        q=config.pruning_directions,
        seed=setup.seed,
        evaluator=config.evaluator,
        journal=journal,
        process_group=group.process_group(),
    )


def uniform_ratios(network: nn.Module, sparsity: float) -> LayerRatios:
    """The same part of every layer, and at least one weight."""
    whole = set(dense_names(network))
    layers = []
    for name, tensor in _trained(network).items():
        weight_count = tensor.numel() if name in whole else max(1, round((1 - sparsity) * tensor.numel()))
        layers.append(zo.pruning.Layer(name, tensor.numel(), weight_count))
    return LayerRatios("uniform", sparsity, tuple(layers))


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters: those that a network of the user's own keeps fixed are in no set."""
    parameters = zo.estimators.Parameters(network)
    return dict(zip(parameters.names, parameters.tensors, strict=True))
