"""Batch norm: channels normalised anew, with variances compared by a formula that does not cancel."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.evaluators.difference.changes import Change, Entries, Moved, OneChannel
from zo.evaluators.difference.rule_registry import Argument, TapedCall, named, register
from zo.evaluators.difference.rules.subtracted import subtracted


def normalised_change(
    centred: Tensor, d: Tensor, axes: tuple[int, ...], s: Tensor, square: Tensor, scale: Tensor, eps: float
) -> Tensor:
    """Change of scale (x - mean) / sqrt(variance + eps) when x becomes x + d and both statistics follow.

        v' - v = mean((d - dbar) (2 (x - m) + (d - dbar)))        1/s' - 1/s = -(v' - v) / (s s' (s + s'))

    Args:
        centred: x - m of the base, broadcast against `d`.
        d: change, `(variants, ...)`.
        axes: the axes of `d`, that the statistics are taken over.
        s: sqrt(variance + eps) of the base, broadcast against `d`.
        square: the square of `s`.
        scale: broadcast against `d`.
        eps: added to the variance.
    """
    e = d - d.mean(axes, keepdim=True)
    moved = centred + e
    more = (moved + centred).mul_(e).mean(axes, keepdim=True)
    # Not variance + more: where a channel becomes constant rounding would make that negative.
    t = moved.square_().mean(axes, keepdim=True).add_(eps).sqrt_()
    return e.addcmul_(centred, more / torch.addcmul(square, s, t), value=-1).mul_(scale / t)


def base_statistics(
    call: TapedCall,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Argument,
    training: bool,
    eps: float,
) -> Tensor:
    """Statistics of the base, made once a step: mean, deviation, its square, weight, weight / deviation.

    Returns:
        `(5, channels, 1, ...)`, to broadcast against `x`.
    """

    def of_base() -> Tensor:
        if training:
            variance, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
        else:
            assert running_mean is not None and running_var is not None  # or the batch's are used
            mean, variance = running_mean, running_var
        s = torch.sqrt(variance + eps)
        scale = torch.ones_like(s) if weight is None else weight.base if isinstance(weight, Moved) else weight
        return torch.stack([mean, s, s * s, scale, scale / s]).view(5, -1, *[1] * (x.ndim - 2))

    return call.once("statistics", of_base)


def batch_norm(
    call: TapedCall,
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

    statistics = base_statistics(call, x, running_mean, running_var, weight, training, eps)
    if one is None:
        mean, s, square, scale, factor = statistics.split(1)
    else:
        x, (mean, s, square, scale, factor) = one.gathered(x), one.gathered(statistics).split(1, dim=1)
    if isinstance(bias, Moved):
        assert one is not None
        return one.like(one.values.expand(len(one.values), *x.shape[1:]))
    if isinstance(weight, Moved):
        assert one is not None
        return one.like(one.values * ((x - mean) / s))
    d = input.change if one is None else one.values
    if training:
        centred = x - mean if one is not None else call.once("centred", lambda: x - mean)
        normal = normalised_change(centred, d, tuple(axis + 1 for axis in axes), s, square, scale, eps)
    else:
        normal = d * factor
    return normal if one is None else one.like(normal)


register(named("batch_norm"), batch_norm)
