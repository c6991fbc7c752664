"""Layer ratios of scores: the part of each layer that a global ranking keeps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blackbox.notices import warn
from zo.draws import PRUNING, Key
from zo.errors import ConfigurationError, PruningWarning
from zo.estimators.estimator import check_sparsity
from zo.estimators.ratios import Layer, LayerRatios
from zo.pruning.scores import Scores

TIES = 1  # second word of the key's path


def layer_ratios(scores: Scores, sparsity: float, *, minimum: float = 0.01) -> LayerRatios:
    """Read the ratios off the mask of the global ranking.

    Warns with `PruningWarning` of layers whose scores are all zero, such as those before a last
    convolution that starts at zero: no ranking says anything of them.

    Args:
        scores: the scores of all layers, compared with each other as they are.
        sparsity: fraction of the scored weights to remove, in [0, 1).
        minimum: fraction of each layer (and at least one weight) that stays whatever its rank, so that
            no layer is cut off; the others make room for it, as long as they have any.

    Raises:
        ConfigurationError: sparsity outside [0, 1), or minimum outside [0, 1 - sparsity].
    """
    mask = kept_weights(scores, sparsity, minimum=minimum)
    parameters = scores.parameters
    layers = [
        Layer(name, part.numel(), int(part.sum()))
        for name, part in zip(parameters.names, parameters.split(mask), strict=True)
    ]
    if scores.dense is not None:
        pairs = zip(scores.dense.names, scores.dense.tensors, strict=True)
        layers += [Layer(name, tensor.numel(), tensor.numel()) for name, tensor in pairs]
    _warn_of_zero_layers(scores)
    return LayerRatios(scores.method, sparsity, tuple(layers))


def kept_weights(scores: Scores, sparsity: float, *, minimum: float = 0.01) -> Tensor:
    """The mask of the global ranking, `(size,)` bool, True where a weight is kept; see `layer_ratios`."""
    check_sparsity("pruning", "sparsity", sparsity)
    if not isinstance(minimum, float | int) or not 0 <= minimum <= 1 - sparsity + 1e-12:
        raise ConfigurationError(
            f"pruning, minimum: expected a fraction in [0, 1 - sparsity = {1 - sparsity:.3g}], got "
            f"{minimum!r}. More than what is kept on the whole cannot be kept of each layer."
        )
    parameters = scores.parameters
    ranked = ranking(scores)
    position = torch.empty_like(ranked)
    position[ranked] = torch.arange(len(ranked))
    mask = torch.zeros(parameters.size, dtype=torch.bool)
    for start, tensor in zip(parameters.starts, parameters.tensors, strict=True):
        positions = position[start : start + tensor.numel()]
        least = min(len(positions), max(1, math.ceil(minimum * len(positions))))
        mask[start + positions.argsort()[:least]] = True
    room = round((1 - sparsity) * parameters.size) - int(mask.sum())
    candidates = ranked[~mask[ranked]]
    mask[candidates[: max(0, room)]] = True
    return mask


def ranking(scores: Scores) -> Tensor:
    """Flat indices, `(size,)`, from the weight to keep first to the one to remove first."""
    # Ties in an order of their own: by index the first layers would win, or lose, all of them.
    shuffled = torch.randperm(len(scores.values), generator=Key(scores.seed).generator(PRUNING, TIES))
    values = scores.values[shuffled]
    return shuffled[values.argsort(descending=scores.removes == "smallest", stable=True)]


def _warn_of_zero_layers(scores: Scores) -> None:
    pairs = zip(scores.parameters.names, scores.parameters.split(scores.values), strict=True)
    zero = [name for name, values in pairs if not bool(values.any())]
    if zero:
        warn(
            f"Pruning by {scores.method}: expected scores that differ from zero, got none in "
            f"{', '.join(zero)}: its gradient, or its weights, are exactly zero, as before a last layer that "
            "starts at zero. It keeps the minimum, or what ties give it; start that layer at small random "
            "weights, or list these layers as dense.",
            PruningWarning,
        )
