"""Convolutions of a tape in channels-last memory, faster on a CPU than in PyTorch's default.

The values are the same to rounding. The base's are computed again in that format, so that a pass and the base
run the same kernels, and what a weight does not move cancels to the bit where losses are subtracted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zo.batches import map_tensors
from zo.evaluators.difference.tape_mode import Node, Ref

CLOSE = 1e-3  # of the largest value, which two orders of summation do not differ by


def lay_out(nodes: Sequence[Node], ends: Sequence[Ref]) -> None:
    """Compute the base's values anew with convolutions in channels-last memory, where there are some.

    On a CPU with oneDNN, for float32 images `(rows, channels, height, width)`. Nothing is changed where a
    function does not take that format.

    Args:
        nodes: the nodes of a tape; their functions and results are replaced.
        ends: the references whose values must stay.
    """
    if not any(node.call.function is torch.conv2d and _is_served(node.call.output) for node in nodes):
        return
    outputs = [node.call.output for node in nodes]
    functions = [_IN_LAYOUT.get(node.call.function, node.call.function) for node in nodes]
    arguments = [node.args for node in nodes]

    def value(ref: Ref) -> Tensor:
        return outputs[ref.node] if ref.item is None else outputs[ref.node][ref.item]

    for place, (node, function) in enumerate(zip(nodes, functions, strict=True)):
        if node.rule is None:
            continue
        if function is convolution:  # what does not move is brought into that order once
            arguments[place] = tuple(_last(item) if isinstance(item, Tensor) else item for item in node.args)
            for ref in node.refs:
                if nodes[ref.node].rule is None:
                    outputs[ref.node] = _last(value(ref))
        args, kwargs = map_tensors(value, (arguments[place], node.kwargs), kind=Ref)
        try:
            output = function(*args, **kwargs)
        except RuntimeError:  # a user's module that views memory, say
            return
        outputs[place] = tuple(output) if isinstance(output, list) else output
    for ref in ends:
        original, laid_out = nodes[ref.node].call.output, value(ref)
        original = original if ref.item is None else original[ref.item]
        allowed = CLOSE * float(original.nan_to_num(0.0, 0.0, 0.0).abs().max())
        if not torch.allclose(laid_out, original, rtol=0, atol=allowed, equal_nan=True):
            return
    for node, function, args, output in zip(nodes, functions, arguments, outputs, strict=True):
        node.call.function, node.args, node.call.output = function, args, output


@wraps(torch.conv2d)
def convolution(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`torch.conv2d` in channels-last memory."""
    return torch.conv2d(_last(input), _last(weight), *args, **kwargs)


@wraps(functional.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm`, whose kernel for this format sums a batch's statistics in a plain loop.

    They are off by 1e-5 of a deviation there, which is more than a small mu changes; these by 1e-7.
    """
    if not (_is_served(input) and input.is_contiguous(memory_format=torch.channels_last)):
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    pixels = input.permute(0, 2, 3, 1)
    rows = pixels.reshape(-1, input.shape[1])
    if training:
        rows = rows - rows.mean(0)
        scale, shift = torch.rsqrt((rows * rows).mean(0) + eps), None
    else:
        assert running_mean is not None and running_var is not None  # or the batch's are used
        scale, shift = torch.rsqrt(running_var + eps), running_mean
    scale = scale if weight is None else scale * weight
    shift = torch.zeros_like(scale) if shift is None else -shift * scale
    shift = shift if bias is None else shift + bias
    return torch.addcmul(shift, rows, scale).view(pixels.shape).permute(0, 3, 1, 2)


def _last(tensor: Tensor) -> Tensor:
    if not _is_served(tensor):
        return tensor
    if tensor.shape[1] > 1:
        return tensor.contiguous(memory_format=torch.channels_last)
    # With one channel both formats are the same memory; PyTorch distinguishes them by strides.
    *_, height, width = tensor.shape
    return tensor.contiguous().as_strided(tensor.shape, (height * width, 1, width, 1))


def _is_served(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


def _shaped(function: Callable[..., Tensor], to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A view of memory in another order is a copy."""

    @wraps(function)
    def reshaped(input: Tensor, *shape: Any, **named: Any) -> Tensor:
        if any(isinstance(item, torch.dtype) for item in (*shape, *named.values())):
            return function(input, *shape, **named)
        return to(input, *shape, **named)

    return reshaped


_IN_LAYOUT: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: convolution,
    functional.batch_norm: batch_norm,
    Tensor.view: _shaped(Tensor.view, Tensor.reshape),
    Tensor.view_as: _shaped(Tensor.view_as, Tensor.reshape_as),
}
