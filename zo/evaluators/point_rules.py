"""What a single changed weight does to its layer's output: one rule for each type of layer.

Such a weight reaches one output channel. So the shared weights run on the rows of all variants, and
the change is added to that channel in the variant's own rows: no copy of the network is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional


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


# Adds the effect of changes of one parameter (by its name in the module) to the output, in place.
# The input and output have the rows of all variants first, variants outermost.
Rule: TypeAlias = Callable[[nn.Module, str, PointChanges, Tensor, Tensor, int], None]


def linear(module: nn.Module, name: str, changes: PointChanges, x: Tensor, y: Tensor, variants: int) -> None:
    """`nn.Linear`: y[..., out] += step * x[..., in]; x `(rows, ..., in)`, y `(rows, ..., out)`."""
    assert isinstance(module, nn.Linear)
    y = y.view(variants, -1, module.out_features)
    steps = changes.steps[:, None]
    if name == "bias":
        y[changes.variants, :, changes.entries] += steps
        return
    out, into = torch.unravel_index(changes.entries, module.weight.shape)
    x = x.reshape(variants, -1, module.in_features)
    y[changes.variants, :, out] += steps * x[changes.variants, :, into]


def conv2d(module: nn.Module, name: str, changes: PointChanges, x: Tensor, y: Tensor, variants: int) -> None:
    """`nn.Conv2d`: y[:, out] += step * (x[:, in], padded, shifted by the tap and strided)."""
    assert isinstance(module, nn.Conv2d)
    y = y.view(variants, -1, *y.shape[1:])
    steps = changes.steps[:, None, None, None]
    if name == "bias":
        y[changes.variants, :, changes.entries] += steps
        return
    out, into, row, column = torch.unravel_index(changes.entries, module.weight.shape)
    group = torch.div(out, module.out_channels // module.groups, rounding_mode="floor")
    into = into + group * module.weight.shape[1]
    x = x.reshape(variants, -1, *x.shape[1:])[changes.variants, :, into]  # (changes, rows, height, width)
    x = _padded(module, x)
    rows = _taps(row, module.dilation[0], module.stride[0], y.shape[-2])
    columns = _taps(column, module.dilation[1], module.stride[1], y.shape[-1])
    each = torch.arange(len(x), device=x.device)[:, None, None]
    # Advanced indices on both sides of a slice: their axes come first, the slice's (rows) last.
    seen = x[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    y[changes.variants, :, out] += steps * seen


def _taps(tap: Tensor, dilation: int, stride: int, size: int) -> Tensor:
    """Where in the padded input each output position of each change looks, `(changes, size)`."""
    return tap[:, None] * dilation + torch.arange(size, device=tap.device)[None] * stride


def _padded(module: nn.Conv2d, x: Tensor) -> Tensor:
    if module.padding == "valid":
        return x
    pad = []
    for axis in (1, 0):  # functional.pad wants the last axis first
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            pad += [total // 2, total - total // 2]
        else:
            pad += [int(module.padding[axis])] * 2
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, pad, mode=mode)


# Exact types only: a subclass may do anything in its forward.
RULES: dict[type[nn.Module], Rule] = {nn.Linear: linear, nn.Conv2d: conv2d}
