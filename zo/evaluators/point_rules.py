"""The change of a layer's output by a single changed weight: one rule for each type of layer.

Such a weight reaches one output channel. So the shared weights run on the rows of all variants, and
the change is added to that channel in the variant's own rows: no copy of the layer is made. Types without
a rule run on copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from zo.batches import sent


@dataclass(frozen=True)
class PointChanges:
    """Changes of single entries of one tensor, at most one to a variant.

    Attributes:
        variants: `(changes,)`, which variant each belongs to; no number twice.
        entries: `(changes,)`, flat index into the tensor.
        steps: `(changes,)`, what is added to the entry.
    """

    variants: Tensor
    entries: Tensor
    steps: Tensor

    def to(self, tensor: Tensor) -> PointChanges:
        """The same changes on the device and in the dtype of the parameter."""
        device = tensor.device
        places = sent(torch.stack([self.variants, self.entries]), device)
        return PointChanges(places[0], places[1], sent(self.steps, device, tensor.dtype))

    def copies(self, tensor: Tensor, variants: int) -> Tensor:
        """A copy of the parameter for each variant, its own entry changed: `(variants, *shape)`."""
        copies = tensor.detach().expand(variants, *tensor.shape)
        copies = copies.clone(memory_format=torch.contiguous_format)  # channels last has no flat view
        copies.view(variants, -1)[self.variants, self.entries] += self.steps
        return copies


def places(entries: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """Flat indices `(changes,)` as indices of each axis; `torch.unravel_index` takes five times as long."""
    indices = []
    for size in reversed(shape):
        indices.append(entries % size)
        entries = entries // size
    return tuple(reversed(indices))


def by_variant(tensor: Tensor, variants: int, axis: int) -> Tensor:
    """A view `(variants, axis, rows, ...)` of `(variants * rows, ...)`; the axis counts after the split."""
    return tensor.unflatten(0, (variants, -1)).movedim(axis, 1)


# For changes of the layer's weight: the output channel that each reaches, `(changes,)`, and what a step of
# one adds there, `(changes, rows, *other axes)`. Input and output have the rows of all variants first,
# variants outermost.
Reach: TypeAlias = Callable[[Any, PointChanges, Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PointRule:
    """The path of a layer type's changed weight and bias to its output.

    Attributes:
        reach: the rule of the weight. The bias of all types is added to the channel of its own index.
        axis: the axis of the channels in the output, behind that of the variants.
    """

    reach: Reach
    axis: int

    def add(
        self, module: nn.Module, name: str, changes: PointChanges, x: Tensor, y: Tensor, variants: int
    ) -> None:
        """Add the effect of changes of one parameter, by its name in the module, to the output, in place."""
        if name == "bias":
            channels, factors = changes.entries, torch.ones((), dtype=y.dtype, device=y.device)
        else:
            channels, factors = self.reach(module, changes, x, y, variants)
        target = by_variant(y, variants, self.axis)
        steps = changes.steps.view(-1, *[1] * (target.ndim - 2))
        target[changes.variants, channels] += steps * factors


def _linear(
    module: nn.Linear, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[Tensor, Tensor]:
    """y[..., out] += step * x[..., in]; x `(rows, ..., in)`, y `(rows, ..., out)`."""
    out, into = places(changes.entries, module.weight.shape)
    return out, by_variant(x, variants, -1)[changes.variants, into]


def _embedding(
    module: nn.Embedding, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[Tensor, Tensor]:
    """y[..., feature] += step where x == word; x `(rows, ...)` of words, y `(rows, ..., features)`."""
    word, feature = places(changes.entries, module.weight.shape)
    words = x.unflatten(0, (variants, -1))[changes.variants]
    return feature, (words == word.view(-1, *[1] * (words.ndim - 1))).to(y.dtype)


def _convolution(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[Tensor, Tensor]:
    """Return the inputs that a changed weight reads, in up to three dimensions; see `Kernel.seen_by_taps`."""
    out, into, *taps = places(changes.entries, module.weight.shape)
    group = out // (module.out_channels // module.groups)
    channels = by_variant(x, variants, 2)[changes.variants, into + group * module.weight.shape[1]]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    kernel = Kernel(module.kernel_size, module.stride, module.padding, module.dilation, mode)
    return out, kernel.seen_by_taps(channels, taps, y.shape[2:])


@dataclass(frozen=True)
class Kernel:
    """The geometry of a convolution's kernel over its input.

    Attributes:
        size: its taps along each axis.
        stride: the stride of the convolution.
        padding: the padding of the convolution, which may be a word.
        dilation: the dilation of the convolution.
        mode: the mode of the padding, as `functional.pad` calls it.
    """

    size: tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: str | int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    mode: str = "constant"

    def seen_by_taps(self, channels: Tensor, taps: Sequence[Tensor], reached: tuple[int, ...]) -> Tensor:
        """Return the inputs that single weights read.

            y[:, out, p] += step * x[:, in, p * stride + tap * dilation - padding]

        Args:
            channels: `(changes, rows, *space)`, the input channel of each change.
            taps: `(changes,)` for each axis of the kernel: the place of the weight in it.
            reached: size of the output.

        Returns:
            `(changes, rows, *reached)`.
        """
        windows = self.windows(channels, reached)
        return windows[(torch.arange(len(channels), device=channels.device), *taps)]

    def windows(self, channels: Tensor, reached: tuple[int, ...]) -> Tensor:
        """Return the inputs that each tap reads: `(changes, *size, rows, *reached)`, a view.

        Args:
            channels: `(changes, rows, *space)`, the input channel of each change.
            reached: size of the output.
        """
        axes = len(self.size)
        strides, dilations = _per_axis(self.stride, axes), _per_axis(self.dilation, axes)
        pads = _pads(self.padding, dilations, self.size)
        padded = functional.pad(channels, pads, mode=self.mode).contiguous()
        variants, rows, *along = padded.stride()
        return padded.as_strided(
            (len(padded), *self.size, padded.shape[1], *reached),
            (
                variants,
                *(step * d for step, d in zip(along, dilations, strict=True)),
                rows,
                *(step * s for step, s in zip(along, strides, strict=True)),
            ),
        )


def _per_axis(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _pads(
    padding: str | int | tuple[int, ...], dilation: tuple[int, ...], kernel: tuple[int, ...]
) -> list[int]:
    """Return the padding before and after for `functional.pad`: the last axis first."""
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(size, size) for size in _per_axis(padding, len(kernel))]
    return [size for pair in reversed(pairs) for size in pair]


# Exact types only: a subclass may do anything in its forward.
RULES: dict[type[nn.Module], PointRule] = {
    nn.Linear: PointRule(_linear, axis=-1),
    nn.Embedding: PointRule(_embedding, axis=-1),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), PointRule(_convolution, axis=2)),
}


def rule_of(module: nn.Module, name: str) -> PointRule | None:
    """The rule for a parameter of a module; None where only a copy for each variant will do."""
    if name not in ("weight", "bias"):  # weight_v, say, of a normed weight
        return None
    if isinstance(module, nn.Embedding) and module.max_norm is not None:  # its forward writes the weight
        return None
    return RULES.get(type(module))
