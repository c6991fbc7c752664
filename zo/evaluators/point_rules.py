"""What a single changed weight does to its layer's output: one rule for each type of layer.

Such a weight reaches one output channel. So the shared weights run on the rows of all variants, and
the change is added to that channel in the variant's own rows: no copy of the network is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from zo.evaluators.convolution_taps import convolution, transposed_convolution
from zo.evaluators.point_changes import PointChanges, by_variant, places

# For changes of the layer's weight: the output channel that each reaches, as an index `(changes,)` for
# each channel axis, and what a step of one adds there, `(changes, rows, *other axes)`. Input and output
# have the rows of all variants first, variants outermost.
Reach: TypeAlias = Callable[[Any, PointChanges, Tensor, Tensor, int], tuple[tuple[Tensor, ...], Tensor]]


@dataclass(frozen=True)
class Rule:
    """How the changes of a layer type's weight and bias reach its output.

    Attributes:
        reach: of the weight. The bias of all types is added to the channel of its own index.
        trailing: channels are the last axes of the output, not the one after the rows.
    """

    reach: Reach
    trailing: bool = False

    def add(
        self, module: nn.Module, name: str, changes: PointChanges, x: Tensor, y: Tensor, variants: int
    ) -> None:
        """Add the effect of changes of one parameter, by its name in the module, to the output, in place."""
        if name == "bias":
            channels = places(changes.entries, module.get_parameter("bias").shape)
            seen = torch.ones((), dtype=y.dtype, device=y.device)
        else:
            channels, seen = self.reach(module, changes, x, y, variants)
        axes = tuple(range(-len(channels), 0)) if self.trailing else (2,)
        target = by_variant(y, variants, axes)
        steps = changes.steps.view(-1, *[1] * (target.ndim - 1 - len(channels)))
        target[(changes.variants, *channels)] += steps * seen


def _linear(
    module: nn.Linear, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """y[..., out] += step * x[..., in]; x `(rows, ..., in)`, y `(rows, ..., out)`."""
    out, into = places(changes.entries, module.weight.shape)
    return (out,), by_variant(x, variants, (-1,))[changes.variants, into]


def _embedding(
    module: nn.Embedding, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """y[..., feature] += step where x == word; x `(rows, ...)` of words, y `(rows, ..., features)`."""
    word, feature = places(changes.entries, module.weight.shape)
    words = by_variant(x, variants, ())[changes.variants]
    return (feature,), (words == word.view(-1, *[1] * (words.ndim - 1))).to(y.dtype)


def _batch_norm(
    module: _BatchNorm, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """y[:, channel] += step * (x[:, channel] - running mean) / running deviation."""
    assert module.running_mean is not None and module.running_var is not None  # or the batch's are used
    own = by_variant(x, variants, (2,))[changes.variants, changes.entries]
    shape = (-1, *[1] * (own.ndim - 1))
    mean = module.running_mean[changes.entries].view(shape)
    variance = module.running_var[changes.entries].view(shape)
    return (changes.entries,), (own - mean) * torch.rsqrt(variance + module.eps)


def _norm(normalise: Callable[[Any, Tensor], Tensor], *, trailing: bool) -> Rule:
    """y[channel] += step * normalised x[channel], for norms within a row."""

    def reach(
        module: nn.Module, changes: PointChanges, x: Tensor, y: Tensor, variants: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        own = x.unflatten(0, (variants, -1))[changes.variants]
        channels = places(changes.entries, module.get_parameter("weight").shape)
        axes = tuple(range(-len(channels), 0)) if trailing else (2,)
        normalised = by_variant(normalise(module, own.flatten(0, 1)), len(own), axes)
        return channels, normalised[(torch.arange(len(own), device=x.device), *channels)]

    return Rule(reach, trailing)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return functional.layer_norm(x, module.normalized_shape, eps=module.eps)


def _rms_norm(module: nn.RMSNorm, x: Tensor) -> Tensor:
    return functional.rms_norm(x, module.normalized_shape, eps=module.eps)


def _group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    return functional.group_norm(x, module.num_groups, eps=module.eps)


def _instance_norm(module: _InstanceNorm, x: Tensor) -> Tensor:
    if module.training or module.running_mean is None:
        return functional.instance_norm(x, eps=module.eps)
    mean, variance = module.running_mean, module.running_var
    return functional.instance_norm(x, mean, variance, use_input_stats=False, eps=module.eps)


# Exact types only: a subclass may do anything in its forward.
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(_linear, trailing=True),
    nn.Embedding: Rule(_embedding, trailing=True),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), Rule(convolution)),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), Rule(transposed_convolution)
    ),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), Rule(_batch_norm)),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _norm(_instance_norm, trailing=False)
    ),
    nn.GroupNorm: _norm(_group_norm, trailing=False),
    nn.LayerNorm: _norm(_layer_norm, trailing=True),
    nn.RMSNorm: _norm(_rms_norm, trailing=True),
}


def rule_of(module: nn.Module, name: str) -> Rule | None:
    """The rule for a parameter of a module; None where only a copy for each variant will do."""
    if name not in ("weight", "bias"):  # weight_v, say, of a normed weight
        return None
    if isinstance(module, nn.Embedding) and module.max_norm is not None:  # its forward writes the weight
        return None
    return RULES.get(type(module))
