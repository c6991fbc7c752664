"""Functions without a rule of their own: evaluated in float64, with the change and without, and subtracted.

float64 has nine digits more than the float32 that networks run in, so what cancels in the subtraction is
not missed. In a network that is in float64 itself these functions are rounded as in `loop`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from zo.batches import map_tensors, tensors
from zo.evaluators.difference.changes import Change, Moved, OneChannel
from zo.evaluators.difference.rule_registry import (
    Argument,
    TapedCall,
    any_tensor,
    by_channel,
    has_apart,
    named,
    register,
)

FEW = 4  # variants that are evaluated one after another sooner than vmap has begun


def subtracted(call: TapedCall, *args: Argument, **kwargs: Argument) -> Argument:
    """f(x + d) - f(x) in all variants, of a function that draws nothing."""
    stacks: list[Tensor] = []
    args, kwargs = _with_own_eps(call, args, kwargs)

    def wide(item: Tensor | Moved) -> Tensor | Moved:
        if isinstance(item, Moved):  # the base among the variants: what does not move cancels to the bit
            base = _double(item.base)
            stacks.append(torch.cat([base[None], (base + item.change).to(base.dtype)]))
            return item
        return _double(item)

    args, kwargs = map_tensors(wide, (args, kwargs), kind=(Tensor, Moved))

    def function(*values: Tensor) -> Argument:
        queue = iter(values)
        moved_args, moved_kwargs = map_tensors(lambda _: next(queue), (args, kwargs), kind=Moved)
        return call.function(*moved_args, **moved_kwargs)

    bases = tensors(call.output)
    results = per_variant(function, *stacks)
    return map_tensors(lambda values: _change(values[1:], values[:1], next(bases)), results)


def per_variant(function: Callable[..., Any], *changes: Tensor) -> Argument:
    """The function on each variant of changes `(variants, ...)`: a tensor or several, variants first."""
    if len(changes[0]) <= FEW:
        results = [function(*parts) for parts in zip(*changes, strict=True)]
        if isinstance(results[0], Tensor):
            return torch.stack(results)
        return tuple(map(torch.stack, zip(*results, strict=True)))
    with warnings.catch_warnings():  # slow inside is right all the same
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        return vmap(function)(*changes)


BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by which NaN is equal to itself


def _change(moved: Tensor, base: Tensor, output: Tensor) -> Tensor:
    """The difference in the output's dtype; what stays infinite or NaN, as under a mask, has none."""
    if not output.is_floating_point():
        return moved.long() - base.long()
    change = moved - base
    if base.device.type != "cpu" or not base.isfinite().all():  # a GPU would be waited for
        change.masked_fill_(
            moved.view(BITS[moved.element_size()]) == base.view(BITS[base.element_size()]), 0.0
        )
    return change.to(output.dtype)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _elementwise(call: TapedCall, input: Argument, *args: Argument, **kwargs: Argument) -> Tensor:
    """The rule of elementwise functions: `subtracted` without stacks, where one tensor moves."""
    if not isinstance(input, Moved) or any_tensor((args, kwargs)):
        return subtracted(call, input, *args, **kwargs)
    x = input.base.double()
    moved, base = (call.function(value, *args, **kwargs) for value in (x + input.change, x))
    return _change(moved, base, call.output)


def _pooled(call: TapedCall, input: Moved, *args: Argument, **kwargs: Argument) -> Change:
    """The rule of pooling: each channel of `(rows, channels, ...)` by itself."""
    if not has_apart(call, input):
        return subtracted(call, input, *args, **kwargs)
    one = input.of
    assert isinstance(one, OneChannel)
    x = one.gathered(input.base).double()
    moved, base = (call.function(value.flatten(0, 1), *args, **kwargs) for value in (x + one.values, x))
    return one.like(_change(moved, base, call.output).unflatten(0, x.shape[:2]))


def _with_own_eps(
    call: TapedCall, args: tuple[Argument, ...], kwargs: dict[str, Argument]
) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
    """Arguments of a root mean square norm with the eps of the network's own dtype, where none is given."""
    eps = args[3] if len(args) > 3 else kwargs.get("eps")
    if eps is not None or call.function not in named("rms_norm"):
        return args, kwargs
    return args[:3], kwargs | {"eps": torch.finfo(call.output.dtype).eps}


register(
    named(
        *("leaky_relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "elu", "celu", "selu"),
        *("sigmoid", "expit", "tanh", "silu", "gelu", "softplus", "logsigmoid", "mish", "softsign"),
        *("abs", "absolute", "clamp", "clip", "clamp_min", "clamp_max"),
        *("exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos", "erf"),
        *("pow", "__pow__", "__rdiv__", "__rtruediv__"),
    ),
    by_channel(_elementwise),
)
register(named("max_pool1d", "max_pool2d", "max_pool3d"), _pooled)
