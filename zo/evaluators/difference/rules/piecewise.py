"""Piecewise linear functions, max-pooling among them: exact across their kinks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from zo.evaluators.difference.changes import Change, Moved, OneChannel, aligned
from zo.evaluators.difference.registry import Argument, Call, Rule, named, register


def relu_change(x: Tensor, d: Tensor) -> Tensor:
    """relu(x + d) - relu(x)."""
    return torch.where(x > 0, torch.maximum(d, -x), (x + d).clamp_min(0))


def clamp_change(x: Tensor, d: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """clamp(x + d) - clamp(x): what is left of d between the bounds, seen from the clamped x."""
    clamped = x.clamp(low, high)  # pyright: ignore
    return torch.minimum(torch.maximum((x - clamped) + d, low - clamped), high - clamped)


def absolute_change(x: Tensor, d: Tensor) -> Tensor:
    """|x + d| - |x|."""
    return relu_change(x, d) + relu_change(-x, -d)


def _relu(call: Call, input: Moved, inplace: bool = False) -> Tensor:
    return relu_change(input.base, input.change)


def _leaky_relu(call: Call, input: Moved, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    x, d = input.base, input.change
    return relu_change(x, d) - negative_slope * relu_change(-x, -d)


def _clamp(
    call: Call,
    input: Moved,
    min: Argument = None,
    max: Argument = None,
    inplace: bool = False,
) -> Tensor:
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = (torch.as_tensor(bound, dtype=call.output.dtype) for bound in (low, high))
        shape = call.output.shape
        x = input.base.expand(shape)
        return clamp_change(x, aligned(input.change, x.ndim), low.to(x.device), high.to(x.device))
    return clamp_change(input.base, input.change, low, high)


def _hardtanh(
    call: Call, input: Moved, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    return clamp_change(input.base, input.change, min_val, max_val)


def _relu6(call: Call, input: Moved, inplace: bool = False) -> Tensor:
    return clamp_change(input.base, input.change, 0.0, 6.0)


def _hardsigmoid(call: Call, input: Moved, inplace: bool = False) -> Tensor:
    return clamp_change(input.base, input.change, -3.0, 3.0) / 6


def _hardswish(call: Call, input: Moved, inplace: bool = False) -> Tensor:
    x, d = input.base, input.change
    gate, moved = (x + 3).clamp(0, 6), clamp_change(x, d, -3.0, 3.0)
    return (d * gate + (x + d) * moved) / 6


def _abs(call: Call, input: Moved) -> Tensor:
    return absolute_change(input.base, input.change)


def _prelu(call: Call, input: Argument, weight: Argument) -> Tensor:
    """relu(x) - w relu(-x); w `(1,)` or one for each channel of axis 1."""
    x, d = (input.base, input.change) if isinstance(input, Moved) else (input, torch.zeros_like(input[None]))
    w = weight.base if isinstance(weight, Moved) else weight
    shape = (-1, *[1] * (x.ndim - 2)) if w.numel() > 1 else (1,)
    negative = relu_change(-x, -d)
    change = relu_change(x, d) - w.view(shape) * negative
    if isinstance(weight, Moved):
        dw = weight.change.view(weight.variants, *[1] * (x.ndim + 1 - len(shape) - 1), *shape)
        change = change - dw * ((-x).clamp_min(0) + negative)
    return change


def _pair_extreme(sign: int) -> Argument:
    """max(a, b) (or min) of two tensors: the larger change, less its side's distance from the base's."""

    def rule(call: Call, input: Argument, other: Argument) -> Tensor:
        sides = []
        for side in (input, other):
            base = side.base if isinstance(side, Moved) else side
            d = side.change if isinstance(side, Moved) else torch.zeros_like(base)[None]
            d = d.reshape(len(d), *[1] * (call.output.ndim + 1 - d.ndim), *d.shape[1:])
            sides.append(sign * d - (sign * call.output - sign * base))
        return sign * torch.maximum(*sides)

    return rule


def _extreme_along(sign: int) -> Argument:
    """Amax (or amin) over axes: as above."""

    def rule(call: Call, input: Moved, dim: Argument = (), keepdim: bool = False) -> Tensor:
        axes = [dim] if isinstance(dim, int) else list(dim) or list(range(input.base.ndim))
        axes = [axis % input.base.ndim for axis in axes]
        top = (sign * input.base).amax(axes, keepdim=True)
        gap = top - sign * input.base
        return sign * (sign * input.change - gap).amax([axis + 1 for axis in axes], keepdim=keepdim)

    return rule


def _max_pool(
    call: Call,
    input: Moved,
    kernel_size: Argument,
    stride: Argument = None,
    padding: Argument = 0,
    dilation: Argument = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Change:
    """max_j (d_j - (max x - x_j)) in each window."""
    if return_indices:
        raise NotImplementedError("max-pooling that gives its indices, which jump")
    reached = call.output.shape
    spatial = 1 if "1d" in call.function.__name__ else 3 if "3d" in call.function.__name__ else 2
    kernel, pad, dilation = (_each(value, spatial) for value in (kernel_size, padding, dilation))
    step = kernel if stride is None or stride == [] else _each(stride, spatial)
    sizes = reached[-spatial:]

    def windows(tensor: Tensor, fill: float) -> Tensor:
        """`(..., *out, *kernel)`."""
        pads = []
        for axis in reversed(range(spatial)):
            span = (sizes[axis] - 1) * step[axis] + (kernel[axis] - 1) * dilation[axis] + 1
            size = tensor.shape[tensor.ndim - spatial + axis]
            pads += [pad[axis], max(0, span - size - pad[axis])]  # a ceiling may look beyond the padding
        padded = functional.pad(tensor, pads, value=fill)
        along = padded.stride()
        behind = along[-spatial:]
        return padded.as_strided(
            (*padded.shape[:-spatial], *sizes, *kernel),
            (
                *along[:-spatial],
                *(a * s for a, s in zip(behind, step, strict=True)),
                *(a * d for a, d in zip(behind, dilation, strict=True)),
            ),
            padded.storage_offset(),
        )

    one = (
        input.of if isinstance(input.of, OneChannel) and input.of.axis == len(reached) - spatial - 1 else None
    )
    x, top = input.base, call.output
    if one is not None:
        x, top = one.gathered(x), one.gathered(top)
    gap = top.reshape(*top.shape, *[1] * spatial) - windows(x, -math.inf)
    values = input.change if one is None else one.values
    change = (windows(values, 0.0) - gap).amax(tuple(range(-spatial, 0)))
    return change if one is None else one.like(change)


def _each(value: Argument, count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


for names, function in (
    (("relu",), _relu),
    (("leaky_relu",), _leaky_relu),
    (("clamp", "clip"), _clamp),
    (("hardtanh",), _hardtanh),
    (("relu6",), _relu6),
    (("hardsigmoid",), _hardsigmoid),
    (("hardswish",), _hardswish),
    (("abs", "absolute"), _abs),
):
    register(named(*names), Rule(function, elementwise=True))
register(named("clamp_min"), Rule(lambda call, input, min: _clamp(call, input, min), elementwise=True))
register(named("clamp_max"), Rule(lambda call, input, max: _clamp(call, input, None, max), elementwise=True))
register(named("prelu"), Rule(_prelu))
register(named("maximum"), Rule(_pair_extreme(1)))
register(named("minimum"), Rule(_pair_extreme(-1)))
register(named("amax"), Rule(_extreme_along(1)))
register(named("amin"), Rule(_extreme_along(-1)))
register(named("max_pool1d", "max_pool2d", "max_pool3d"), Rule(_max_pool))
