"""Layer ratios: the part of each layer that a global ranking keeps; as a table, and saved with a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blackbox.notices import warn
from zo.draws import PRUNING, Key
from zo.errors import ConfigurationError, PruningWarning
from zo.estimators.estimator import check_sparsity
from zo.pruning.scores import Scores

TIES = 1  # second word of the key's path


@dataclass(frozen=True)
class Layer:
    """One tensor: its name, how many weights it has, how many of them are kept."""

    name: str
    size: int
    kept: int


@dataclass(frozen=True)
class LayerRatios(Mapping[str, float]):
    """The fraction kept of each tensor, by name: a mapping, as `LayerwiseCoordinates` takes it.

    Attributes:
        method: the method of the scores.
        sparsity: the sparsity that was asked for, over what was scored.
        layers: in the order of the network, scored ones first, then dense ones.
    """

    method: str
    sparsity: float
    layers: tuple[Layer, ...]

    def __getitem__(self, name: str) -> float:
        for layer in self.layers:
            if layer.name == name:
                return layer.kept / layer.size
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Plain text, a line a layer and one for all."""
        total = Layer("all", sum(x.size for x in self.layers), sum(x.kept for x in self.layers))
        width = max(len(layer.name) for layer in (*self.layers, total))
        lines = [f"{self.method}, sparsity {self.sparsity:g}", f"{'layer':{width}}  weights     kept  ratio"]
        lines += [
            f"{x.name:{width}} {x.size:8d} {x.kept:8d} {x.kept / x.size:6.3f}" for x in (*self.layers, total)
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The ratios in plain values, for JSON; `from_dict` takes them back."""
        layers = [{"name": x.name, "size": x.size, "kept": x.kept} for x in self.layers]
        return {"method": self.method, "sparsity": self.sparsity, "layers": layers}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> LayerRatios:
        """The ratios that `to_dict` gave.

        Raises:
            ConfigurationError: it is something else.
        """
        try:
            layers = tuple(Layer(x["name"], x["size"], x["kept"]) for x in saved["layers"])
            ratios = cls(saved["method"], saved["sparsity"], layers)
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                "LayerRatios.from_dict: expected method, sparsity and layers with name, size and kept, got "
                f"{str(saved)[:80]} ({error!r} missing). Save ratios with to_dict."
            ) from error
        if not all(0 <= layer.kept <= layer.size for layer in layers):
            raise ConfigurationError(
                f"LayerRatios.from_dict: expected 0 <= kept <= size in every layer, got {layers}."
            )
        return ratios


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
    kept = torch.zeros(parameters.size, dtype=torch.bool)
    for start, tensor in zip(parameters.starts, parameters.tensors, strict=True):
        positions = position[start : start + tensor.numel()]
        least = min(len(positions), max(1, math.ceil(minimum * len(positions))))
        kept[start + positions.argsort()[:least]] = True
    room = round((1 - sparsity) * parameters.size) - int(kept.sum())
    others = ranked[~kept[ranked]]
    kept[others[: max(0, room)]] = True
    return kept


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
