"""Convolutions: linear in their input and in their weight; one changed channel costs one channel's work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zo.evaluators.difference.changes import Change, Entries, Moved, OneChannel, total
from zo.evaluators.difference.rule_registry import Argument, TapedCall, named, register
from zo.evaluators.difference.rules.products import bias_change, bilinear_change
from zo.evaluators.point_rules import Kernel


def _convolution(
    call: TapedCall,
    input: Argument,
    weight: Argument,
    bias: Argument = None,
    stride: Argument = 1,
    padding: Argument = 0,
    dilation: Argument = 1,
    groups: int = 1,
) -> Change:
    """`(rows, channels, ...)`, in one, two or three dimensions."""
    options = (stride, padding, dilation, groups)
    x = input.base if isinstance(input, Moved) else input
    w = weight.base if isinstance(weight, Moved) else weight
    batched = x.ndim == w.ndim
    parts: list[Change] = []

    def run(x: Tensor, w: Tensor) -> Tensor:
        return call.function(x, w, None, *options)

    if isinstance(input, Moved):
        if isinstance(input.of, OneChannel) and input.of.axis == 1 and batched:
            parts.append(convolve_one_channel(call, input.of, w, options))
        else:
            parts.append(convolve(call, input.change, w, options))
    if isinstance(weight, Moved):
        if isinstance(weight.of, Entries) and not isinstance(input, Moved) and batched:
            parts.append(convolve_entries(weight.of, x, w, call.output.shape[2:], options))
        else:
            value = input.value if isinstance(input, Moved) else x
            parts.append(bilinear_change(run, value, weight.change, isinstance(input, Moved)))
    if isinstance(bias, Moved):
        parts.append(bias_change(bias, call.output, 1 if batched else 0))
    return total(parts)


def convolve(call: TapedCall, d: Tensor, weight: Tensor, options: tuple[Any, ...]) -> Tensor:
    """The convolution of a change `(variants, rows, channels, ...)`, variants among the rows."""
    folded = call.function(d.flatten(0, 1) if d.ndim > weight.ndim else d, weight, None, *options)
    return folded.unflatten(0, d.shape[:2]) if d.ndim > weight.ndim else folded


def convolve_one_channel(
    call: TapedCall, one: OneChannel, weight: Tensor, options: tuple[Any, ...]
) -> Change:
    """Convolve a change in one channel by that channel's slice of the weight alone, `(out, 1, ...)`."""
    groups, options = options[-1], options[:-1]
    in_per_group, out_per_group = weight.shape[1], weight.shape[0] // groups
    reached = _by_product(one, weight.unflatten(0, (groups, -1)), call.output.shape[2:], options)
    if groups == 1:
        return reached
    first = one.channels // in_per_group * out_per_group
    if out_per_group == 1:  # depthwise: a channel stays a channel
        return OneChannel(reached, first, 1, weight.shape[0])
    whole = reached.new_zeros(*reached.shape[:2], weight.shape[0], *reached.shape[3:])
    places_ = first[:, None] + torch.arange(out_per_group, device=first.device)
    shaped = places_.view(len(first), 1, -1, *[1] * (whole.ndim - 3)).expand_as(reached)
    return whole.scatter_(2, shaped, reached)


def _by_product(
    one: OneChannel, weight: Tensor, reached: tuple[int, ...], options: tuple[Any, ...]
) -> Tensor:
    """Convolve by one product of matrices, `(variants, rows * places, taps) @ (variants, taps, out)`.

    What it gives has channels last.

    Args:
        one: The change in one channel.
        weight: `(groups, out, in, *kernel)` of a group.
        reached: Size of the output.
        options: Stride, padding and dilation.
    """
    kernel, in_per_group = Kernel(weight.shape[3:], *options), weight.shape[2]
    axes = len(kernel.size)
    windows = kernel.windows(one.values.squeeze(2), reached)
    windows = windows.movedim(tuple(range(1, axes + 1)), tuple(range(-axes, 0)))
    if len(weight) == 1:
        slices = weight[0].movedim(1, 0)[one.channels]
    else:
        slices = weight.movedim(2, 1)[one.channels // in_per_group, one.channels % in_per_group]
    slices = slices.flatten(2).transpose(1, 2)
    product = windows.reshape(len(windows), -1, slices.shape[1]) @ slices
    return product.view(*windows.shape[:-axes], -1).movedim(-1, 2)


def convolve_entries(
    of: Entries, x: Tensor, weight: Tensor, reached: tuple[int, ...], options: tuple[Any, ...]
) -> OneChannel:
    """Return the output's change by single weights: each adds its shifted input to one channel."""
    out, into, *taps = of.places
    if (groups := options[-1]) > 1:
        into = into + out // (weight.shape[0] // groups) * weight.shape[1]
    # each variant's own input channel, padded; a whole padded copy would be far larger
    entries = Kernel(weight.shape[2:], *options[:-1]).seen_by_taps(x.movedim(1, 0)[into], taps, reached)
    values = of.steps.view(-1, *[1] * (entries.ndim - 1)) * entries
    return OneChannel(values.unsqueeze(2), out, 1, weight.shape[0])


register(named("conv1d", "conv2d", "conv3d"), _convolution)
