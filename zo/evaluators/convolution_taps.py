"""Where a single weight of a convolution looks: the input that it takes to each place of the output.

In one, two or three dimensions, strided, dilated, grouped, depthwise and transposed alike: a weight is a
tap of one input channel, and reaches one output channel.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from zo.evaluators.point_changes import PointChanges, by_variant, places

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def convolution(
    module: Convolution, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """y[:, out, p] += step * x[:, in, p * stride + tap * dilation - padding]; see `point_rules.Reach`."""
    out, into, *taps = places(changes.entries, module.weight.shape)
    group = out // (module.out_channels // module.groups)
    own = by_variant(x, variants, (2,))[changes.variants, into + group * module.weight.shape[1]]
    padding = [before for before, _ in _padding(module)]
    if module.padding_mode != "zeros":
        both = [size for pair in reversed(_padding(module)) for size in pair]  # the last axis first
        own, padding = functional.pad(own, both, mode=module.padding_mode), [0] * len(taps)
    seen = []
    for axis, tap in enumerate(taps):
        first = torch.arange(y.shape[2 + axis], device=x.device) * module.stride[axis] - padding[axis]
        seen.append(first + tap[:, None] * module.dilation[axis])
    return (out,), _taken(own, seen)


def transposed_convolution(
    module: TransposedConvolution, changes: PointChanges, x: Tensor, y: Tensor, variants: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """y[:, out, i * stride + tap * dilation - padding] += step * x[:, in, i]; see `point_rules.Reach`."""
    into, out, *taps = places(changes.entries, module.weight.shape)
    group = into // (module.in_channels // module.groups)
    own = by_variant(x, variants, (2,))[changes.variants, into]
    seen = []
    for axis, tap in enumerate(taps):
        reached = torch.arange(y.shape[2 + axis], device=x.device) + int(module.padding[axis])
        reached = reached - tap[:, None] * module.dilation[axis]
        between = reached % module.stride[axis] != 0  # two strides, where nothing arrives
        seen.append((reached // module.stride[axis]).masked_fill(between, -1))
    return (out + group * module.weight.shape[1],), _taken(own, seen)


def _taken(own: Tensor, looked_at: list[Tensor]) -> Tensor:
    """Values `(changes, rows, *input)` at places `(changes, output)` of each axis; zero where outside."""
    flat = torch.zeros_like(looked_at[0][:, :1])
    valid = torch.ones_like(flat, dtype=torch.bool)
    for size, place in zip(own.shape[2:], looked_at, strict=True):
        inside = (place >= 0) & (place < size)
        flat = (flat[:, :, None] * size + place.clamp(0, size - 1)[:, None]).flatten(1)
        valid = (valid[:, :, None] & inside[:, None]).flatten(1)
    taken = own.flatten(2).gather(2, flat[:, None].expand(-1, own.shape[1], -1))
    # Filled, not multiplied by zero: a NaN at the clamped place would come through.
    taken = taken.masked_fill(~valid[:, None], 0.0)
    return taken.unflatten(2, [place.shape[1] for place in looked_at])


def _padding(module: Convolution) -> list[tuple[int, int]]:
    """Before and after, for each axis."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(size), int(size)) for size in module.padding]
