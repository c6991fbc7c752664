"""Norms: the change of a normalised tensor, with variances compared by a formula that does not cancel."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.evaluators.difference.changes import Change, Entries, Moved, OneChannel, aligned
from zo.evaluators.difference.registry import Argument, Call, Rule, named, register


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


def _over_channels(tensor: Argument, ndim: int) -> Argument:
    """Weights `(channels,)`, or their changes with variants before, against `(rows, channels, ...)`."""
    if tensor is None:
        return None
    return tensor.reshape(*tensor.shape[:-1], 1, -1, *[1] * (ndim - 2))


def _statistics(call: Call, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    def make() -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return mean, variance

    return call.once("statistics", make)


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
    x = input.base if isinstance(input, Moved) else input
    axes = (0, *range(2, x.ndim))
    if training:
        mean, variance = _statistics(call, x, axes)
    else:
        assert running_mean is not None and running_var is not None  # or the batch's are used
        mean, variance = _over_channels(running_mean, x.ndim), _over_channels(running_var, x.ndim)
    changed = [item for item in (input, weight, bias) if isinstance(item, Moved)]
    w = None if weight is None else _over_channels(_base(weight), x.ndim)
    one = _common_channel(changed, x)
    if one is not None:
        x, mean, variance = (one.gathered(tensor) for tensor in (x, mean, variance))
        w = None if w is None else one.gathered(w)
    normal = None
    if isinstance(input, Moved):
        if one is not None:
            assert isinstance(input.of, OneChannel)
            d = input.of.values
        else:
            d = input.change
        if training:
            normal = normalised_change(x, d, tuple(axis + 1 for axis in axes), mean, variance, eps)
        else:
            normal = d * torch.rsqrt(variance + eps)
    out = None if normal is None else (normal if w is None else normal * w)
    if isinstance(weight, Moved):
        scaled = (x - mean) * torch.rsqrt(variance + eps)
        dw = _affine_change(weight, one, call.output.ndim)
        out = _plus(out, dw * (scaled if normal is None else scaled + normal))
    if isinstance(bias, Moved):
        db = _affine_change(bias, one, call.output.ndim)
        out = _plus(out, db.expand(len(db), *(x.shape[1:] if one is not None else x.shape)))
    assert out is not None  # something moved
    return out if one is None else one.like(out)


def _base(tensor: Argument) -> Argument:
    return tensor.base if isinstance(tensor, Moved) else tensor


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _common_channel(changed: list[Moved], x: Tensor) -> OneChannel | None:
    """The channel that the only change is in; None where there are several, or it is everywhere."""
    if len(changed) != 1:
        return None
    of = changed[0].of
    if isinstance(of, Entries):
        return OneChannel(of.steps.view(-1, *[1] * x.ndim), of.entries, 1, x.shape[1])
    return of if isinstance(of, OneChannel) and of.axis == 1 else None


def _affine_change(moved: Moved, one: OneChannel | None, ndim: int) -> Tensor:
    return one.values if one is not None else _over_channels(moved.change, ndim)


def _affine(
    call: Call,
    x: Tensor,
    normal: Tensor | None,
    normalised: Argument,
    weight: Argument,
    bias: Argument,
    place: Argument,
) -> Tensor:
    """W n + b when n, w and b change: w dn + dw (n + dn) + db; `place` puts w against x."""
    out = normal
    if out is not None and weight is not None:
        out = out * place(_base(weight))
    if isinstance(weight, Moved):
        n = call.once("normalised", normalised)
        out = _plus(out, place(weight.change) * (n if normal is None else n + normal))
    if isinstance(bias, Moved):
        db = place(bias.change)
        out = _plus(out, db.expand(len(db), *x.shape))
    assert out is not None
    return out


def _group_norm(
    call: Call,
    input: Argument,
    num_groups: int,
    weight: Argument = None,
    bias: Argument = None,
    eps: float = 1e-5,
) -> Tensor:
    x = _base(input)
    grouped = x.reshape(x.shape[0], num_groups, -1)
    mean, variance = _statistics(call, grouped, (2,))
    normal = None
    if isinstance(input, Moved):
        d = input.change.reshape(-1, *grouped.shape)
        normal = normalised_change(grouped, d, (3,), mean, variance, eps).reshape(-1, *x.shape)

    def normalised() -> Tensor:
        return ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)

    return _affine(call, x, normal, normalised, weight, bias, lambda t: _over_channels(t, x.ndim))


def _instance_norm(
    call: Call,
    input: Argument,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Argument = None,
    bias: Argument = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Argument:
    if not use_input_stats:
        return _batch_norm(call, input, running_mean, running_var, weight, bias, False, momentum, eps)
    x = _base(input)
    axes = tuple(range(2, x.ndim))
    mean, variance = _statistics(call, x, axes)
    normal = None
    if isinstance(input, Moved):
        shifted = tuple(axis + 1 for axis in axes)
        normal = normalised_change(x, input.change, shifted, mean, variance, eps)

    def normalised() -> Tensor:
        return (x - mean) * torch.rsqrt(variance + eps)

    return _affine(call, x, normal, normalised, weight, bias, lambda t: _over_channels(t, x.ndim))


def _layer_norm(
    call: Call,
    input: Argument,
    normalized_shape: tuple[int, ...],
    weight: Argument = None,
    bias: Argument = None,
    eps: float = 1e-5,
) -> Tensor:
    x = _base(input)
    axes = tuple(range(-len(normalized_shape), 0))
    mean, variance = _statistics(call, x, axes)
    normal = None
    if isinstance(input, Moved):
        normal = normalised_change(x, input.change, axes, mean, variance, eps)

    def normalised() -> Tensor:
        return (x - mean) * torch.rsqrt(variance + eps)

    def place(tensor: Tensor) -> Tensor:
        behind = len(normalized_shape)
        return tensor if tensor.ndim == behind else aligned(tensor, x.ndim)

    return _affine(call, x, normal, normalised, weight, bias, place)


def _rms_norm(
    call: Call,
    input: Argument,
    normalized_shape: tuple[int, ...],
    weight: Argument = None,
    eps: float | None = None,
) -> Tensor:
    x = _base(input)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    axes = tuple(range(-len(normalized_shape), 0))
    s = torch.sqrt(x.square().mean(axes, keepdim=True) + eps)
    normal = None
    if isinstance(input, Moved):
        d = input.change
        t = torch.sqrt((x + d).square().mean(axes, keepdim=True) + eps)
        more = (d * (2 * x + d)).mean(axes, keepdim=True)
        normal = d / t - x * (more / (s * t * (s + t)))

    def place(tensor: Tensor) -> Tensor:
        return tensor if tensor.ndim == len(normalized_shape) else aligned(tensor, x.ndim)

    return _affine(call, x, normal, lambda: x / s, weight, None, place)


register(named("batch_norm"), Rule(_batch_norm))
register(named("group_norm"), Rule(_group_norm))
register(named("instance_norm"), Rule(_instance_norm))
register(named("layer_norm"), Rule(_layer_norm))
register(named("rms_norm"), Rule(_rms_norm))
