"""Batch norm: channels normalised anew, with variances compared by a formula that does not cancel."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.evaluators.difference.changes import Change, Entries, Moved, OneChannel
from zo.evaluators.difference.registry import Argument, Call, named, register
from zo.evaluators.difference.rules.subtracted import subtracted


def normalised_change(
    x: Tensor, d: Tensor, axes: tuple[int, ...], mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """Change of (x - mean) / sqrt(variance + eps) when x becomes x + d and both statistics follow.

        v' - v = mean((d - dbar) (2 (x - m) + (d - dbar)))        1/s' - 1/s = -(v' - v) / (s s' (s + s'))

    Args:
        x: base, broadcast against `d`.
        d: change, `(variants, ...)`.
        axes: of `d`, that the statistics are taken over.
        mean: of the base, broadcast against `d`.
        variance: of the base, broadcast against `d`.
        eps: added to the variance.
    """
    centred = x - mean
    e = d - d.mean(axes, keepdim=True)
    moved = centred + e
    more = (e * (centred + moved)).mean(axes, keepdim=True)
    # Not variance + more: where a channel becomes constant rounding would make that negative.
    s, t = torch.sqrt(variance + eps), torch.sqrt(moved.square().mean(axes, keepdim=True) + eps)
    return e / t - centred * (more / (s * t * (s + t)))


def _batch_norm(
    call: Call,
    input: Argument,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Argument = None,
    bias: Argument = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Change:
    """Rows and the axes behind the channels share statistics; a channel never sees another."""
    changed = [item for item in (input, weight, bias) if isinstance(item, Moved)]
    x = input.base if isinstance(input, Moved) else input
    of, one = changed[0].of, None
    if isinstance(of, Entries) and changed[0] is not input:  # of weight or bias
        one = OneChannel(of.steps.view(-1, *[1] * x.ndim), of.entries, 1, x.shape[1])
    elif isinstance(of, OneChannel) and of.axis == 1:
        one = of
    if len(changed) > 1 or (one is None and changed[0] is not input):
        return subtracted(call, input, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = (0, *range(2, x.ndim))
    if training:
        variance, mean = call.once("statistics", lambda: torch.var_mean(x, axes, correction=0, keepdim=True))
    else:
        assert running_mean is not None and running_var is not None  # or the batch's are used
        mean, variance = _over_channels(running_mean, x.ndim), _over_channels(running_var, x.ndim)
    if one is not None:
        x, mean, variance = (one.gathered(tensor) for tensor in (x, mean, variance))
    if isinstance(bias, Moved):
        assert one is not None
        return one.like(one.values.expand(len(one.values), *x.shape[1:]))
    if isinstance(weight, Moved):
        assert one is not None
        return one.like(one.values * (x - mean) * torch.rsqrt(variance + eps))
    scale = 1.0
    if weight is not None:
        scale = _over_channels(weight, call.output.ndim)
        scale = scale if one is None else one.gathered(scale)
    d = input.change if one is None else one.values
    if training:
        normal = normalised_change(x, d, tuple(axis + 1 for axis in axes), mean, variance, eps) * scale
    else:
        normal = d * (torch.rsqrt(variance + eps) * scale)
    return normal if one is None else one.like(normal)


def _over_channels(tensor: Tensor, ndim: int) -> Tensor:
    """Numbers `(channels,)` against `(rows, channels, ...)`."""
    return tensor.view(1, -1, *[1] * (ndim - 2))


register(named("batch_norm"), _batch_norm)
