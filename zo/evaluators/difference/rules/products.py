"""Products: f(x + dx, w + dw) - f(x, w) = f(dx, w) + f(x + dx, dw), for whatever is linear in both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from zo.evaluators.difference.changes import Change, Entries, Moved, OneChannel, total
from zo.evaluators.difference.rule_registry import Argument, TapedCall, named, register
from zo.evaluators.difference.rules.subtracted import per_variant, subtracted


def bilinear_change(
    function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor, both: bool
) -> Tensor:
    """function(first, second) for each variant of the second, and of the first too if `both`."""
    if both:
        return per_variant(function, first, second)
    return per_variant(partial(function, first), second)


def bias_change(bias: Moved, output: Tensor, axis: int) -> Change:
    """The change of a bias, one for each place of the output's axis."""
    if isinstance(bias.of, Entries):
        shape = [len(bias.of.entries), *output.shape]
        shape[axis + 1] = 1
        values = bias.of.steps.view(-1, *[1] * output.ndim).expand(shape)
        return OneChannel(values, bias.of.entries, axis, output.shape[axis])
    change = bias.change.reshape(bias.variants, *[1] * axis, -1, *[1] * (output.ndim - axis - 1))
    return change.expand(bias.variants, *output.shape)


def _linear(call: TapedCall, input: Argument, weight: Argument, bias: Argument = None) -> Change:
    """`(rows, ..., in)` to `(rows, ..., out)`."""
    x = input.base if isinstance(input, Moved) else input
    w = weight.base if isinstance(weight, Moved) else weight
    last = x.ndim - 1
    parts: list[Change] = []
    if isinstance(input, Moved):
        one = input.of
        if isinstance(one, OneChannel) and one.axis == last:
            columns = w.T[one.channels]
            parts.append(one.values * columns.view(len(columns), *[1] * last, -1))
        else:
            parts.append(input.change @ w.T)
    if isinstance(weight, Moved):
        if isinstance(weight.of, Entries) and not isinstance(input, Moved):
            out, into = weight.of.places
            steps = weight.of.steps.view(-1, *[1] * x.ndim)
            parts.append(OneChannel(steps * x.movedim(-1, 0)[into].unsqueeze(-1), out, last, len(w)))
        else:
            value = input.value if isinstance(input, Moved) else x
            parts.append(bilinear_change(functional.linear, value, weight.change, isinstance(input, Moved)))
    if isinstance(bias, Moved):
        parts.append(bias_change(bias, call.output, call.output.ndim - 1))
    return total(parts)


def _product(call: TapedCall, input: Argument, other: Argument) -> Tensor:
    """Matrix products and whatever is linear in each of two tensors."""
    parts = []
    if isinstance(input, Moved):
        base = other.base if isinstance(other, Moved) else other
        parts.append(bilinear_change(lambda b, a: call.function(a, b), base, input.change, False))
    if isinstance(other, Moved):
        value = input.value if isinstance(input, Moved) else input
        parts.append(bilinear_change(call.function, value, other.change, isinstance(input, Moved)))
    return sum(parts[1:], parts[0])


def _embedding(
    call: TapedCall,
    input: Argument,
    weight: Argument,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *others: Argument,
    **options: Argument,
) -> Change:
    """Words `(rows, ...)` to features `(rows, ..., features)`; lookups of the padding word show no change."""
    if max_norm is not None:
        raise NotImplementedError("an embedding with max_norm, which writes the weights")
    if isinstance(input, Moved):  # words that a layer before has chosen
        return subtracted(call, input, weight, padding_idx, None, *others, **options)
    passed = None if padding_idx is None else input != padding_idx % len(weight.base)
    if isinstance(weight.of, Entries):
        word, feature = weight.of.places
        shape = (-1, *[1] * input.ndim)
        values = (input == word.view(shape)) * weight.of.steps.view(shape)
        values = values if passed is None else values * passed
        return OneChannel(values.unsqueeze(-1), feature, input.ndim, weight.base.shape[1])
    change = weight.change[:, input]
    return change if passed is None else change * passed.unsqueeze(-1)


register(named("linear"), _linear)
register(named("matmul", "__matmul__", "bmm", "mm", "mv", "dot", "outer"), _product)
register(named("embedding"), _embedding)
