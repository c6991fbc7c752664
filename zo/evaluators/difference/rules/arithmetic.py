"""Sums, products and quotients of tensors and numbers, broadcast as torch does; and ReLU."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.evaluators.difference.changes import Change, Moved, OneChannel, aligned, total
from zo.evaluators.difference.rule_registry import Argument, TapedCall, by_channel, named, register
from zo.evaluators.difference.rules.subtracted import subtracted


def _spread(moved: Moved, output: Tensor, factor: Argument = 1) -> Change:
    """Factor * change, in the shape of the output; in one channel where it was and nothing is broadcast."""
    if isinstance(moved.of, OneChannel) and moved.base.shape == output.shape:
        if not isinstance(factor, Tensor) and factor == 1:
            return moved.of
        if isinstance(factor, Tensor) and factor.ndim:
            factor = moved.of.gathered(factor.expand_as(output))
        return moved.of.like(moved.of.values * factor)
    change = aligned(moved.change, output.ndim)
    if isinstance(factor, Tensor) or factor != 1:
        change = change * factor
    return change.expand(len(change), *output.shape)


def add(call: TapedCall, input: Argument, other: Argument, *, alpha: float = 1) -> Change:
    """Input + alpha * other."""
    parts = []
    if isinstance(input, Moved):
        parts.append(_spread(input, call.output))
    if isinstance(other, Moved):
        parts.append(_spread(other, call.output, alpha))
    return total(parts)


def _sub(call: TapedCall, input: Argument, other: Argument, *, alpha: float = 1) -> Change:
    return add(call, input, other, alpha=-alpha)


def _rsub(call: TapedCall, input: Argument, other: Argument, *, alpha: float = 1) -> Change:
    """Other - alpha * input."""
    return add(call, other, input, alpha=-alpha)


def _mul(call: TapedCall, input: Argument, other: Argument) -> Change:
    """A' b' - a b = da b + (a + da) db."""
    parts: list[Change] = []
    if isinstance(input, Moved):
        parts.append(_spread(input, call.output, other.base if isinstance(other, Moved) else other))
    if isinstance(other, Moved):
        if isinstance(input, Moved):
            value = aligned(input.value, call.output.ndim)
            parts.append(value * aligned(other.change, call.output.ndim))
        else:
            parts.append(_spread(other, call.output, input))
    return total(parts)


def _div(call: TapedCall, input: Argument, other: Argument, **options: Argument) -> Change:
    """Linear in what is divided, by other numbers than zero."""
    if isinstance(other, Moved) or options or (not isinstance(other, Tensor) and other == 0):
        return subtracted(call, input, other, **options)
    return _spread(input, call.output, 1 / other)


def relu(call: TapedCall, input: Moved, inplace: bool = False) -> Change:
    """max(d + min(x, 0), -max(x, 0))."""
    if isinstance(one := input.of, OneChannel):
        x = one.gathered(input.base)
        return one.like(torch.maximum(one.values, -x).add_(x.clamp_max(0)))
    below, least = call.once("parts", lambda: (input.base.clamp_max(0), -call.output))
    return torch.maximum(input.change + below, least)


def _neg(call: TapedCall, input: Moved) -> Tensor:
    return -input.change


register(named("add", "__add__", "__radd__"), add)
register(named("sub", "subtract", "__sub__"), _sub)
register(named("__rsub__", "rsub"), _rsub)
register(named("mul", "multiply", "__mul__", "__rmul__"), _mul)
register(named("div", "divide", "true_divide", "__div__", "__truediv__"), _div)
register(named("neg", "negative", "__neg__"), by_channel(_neg))
register(named("relu"), relu)
