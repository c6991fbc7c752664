"""Which calls `difference` sends through fused kernels on a CPU, and which it leaves to their rules.

Two-dimensional convolutions, batch norm with the batch's statistics, sums and ReLU of changes `(variants,
rows, channels, height, width)` that are in all channels, or enter a convolution by one; and of any shape what
is in `compiled_rules`. All else, and every other device, gives None: the rule of the function is asked. Both
ways are held against each other and against float64 by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zo.evaluators.difference import fused
from zo.evaluators.difference.changes import Change, Lazy, Moved, OneChannel
from zo.evaluators.difference.compiled_rules import COMPILED, compiled_change
from zo.evaluators.difference.fused import PendingNorm
from zo.evaluators.difference.registry import Call, named


def fast_change(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Change | None:
    """The change of a call's result, or None where no kernel serves it.

    Args:
        call: function and base result.
        args: its arguments, `Moved` where they differ in the variants.
        kwargs: likewise.
    """
    if not _on_cpu(call):
        return None
    if call.function in COMPILED:
        return compiled_change(call, args, kwargs)
    kernel = _KERNELS.get(call.function) if call.output.ndim == 4 else None
    return None if kernel is None else kernel(call, *args, **kwargs)


def programs(calls: Iterable[Call], variants: int) -> set[Any]:
    """Names for the programs that passes through these calls may compile; some will turn out not to be met.

    Args:
        calls: recorded ones, those whose base results are not kept are passed over.
        variants: of the passes.
    """
    found: set[Any] = set()
    for call in calls:
        if not _on_cpu(call):
            continue
        own = (call.function, tuple(call.output.shape), variants)
        kernel = _KERNELS.get(call.function) if call.output.ndim == 4 else None
        if call.function in COMPILED or (kernel is not None and kernel is not _convolution):
            found.add(own)
        if kernel is _batch_norm:
            found.add(("statistics", own))
    return found


def _on_cpu(call: Call) -> bool:
    out = call.output
    return isinstance(out, Tensor) and out.device.type == "cpu" and out.dtype == torch.float32


def _convolution(
    call: Call,
    input: Any,  # noqa: ANN401
    weight: Any,  # noqa: ANN401
    bias: Any = None,  # noqa: ANN401
    stride: Any = 1,  # noqa: ANN401
    padding: Any = 0,  # noqa: ANN401
    dilation: Any = 1,  # noqa: ANN401
    groups: int = 1,
) -> Change | None:
    if not isinstance(input, Moved) or isinstance(weight, Moved) or isinstance(bias, Moved):
        return None
    options = (stride, padding, dilation)
    if isinstance(input.of, OneChannel):
        if groups != 1 or input.of.axis != 1:
            return None
        return _one_to_all(call, input.of, weight, options)
    d = fused.last(input.change)
    own = call.once(
        f"weight, {d.dtype}", lambda: weight.to(d.dtype).contiguous(memory_format=torch.channels_last)
    )
    found = functional.conv2d(d.flatten(0, 1), own, None, *options, groups)
    return fused.last(found.unflatten(0, d.shape[:2]))


def _one_to_all(call: Call, one: OneChannel, weight: Tensor, options: tuple[Any, ...]) -> Tensor:
    """One channel of each variant to all; strides say that its map is channels-last, as torch can't see."""
    height, width = one.values.shape[-2:]
    found = []
    for values, channel in zip(one.values.contiguous(), one.channels.tolist(), strict=True):
        rows = values.as_strided((len(values), 1, height, width), (height * width, 1, width, 1))
        piece = weight[:, channel].to(values.dtype).contiguous()
        out, down, across = piece.shape
        piece = piece.as_strided((out, 1, down, across), (down * across, 1, across, 1))
        found.append(functional.conv2d(rows, piece, None, *options))
    whole = found[0][None] if len(found) == 1 else torch.stack(found)
    return fused.last(whole)


def _batch_norm(
    call: Call,
    input: Any,  # noqa: ANN401
    running_mean: Any = None,  # noqa: ANN401
    running_var: Any = None,  # noqa: ANN401
    weight: Any = None,  # noqa: ANN401
    bias: Any = None,  # noqa: ANN401
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Change | None:
    if not isinstance(input, Moved) or not isinstance(input.of, Tensor | Lazy) or not training:
        return None
    if isinstance(weight, Moved) or isinstance(bias, Moved):
        return None
    d = fused.last(input.change)
    centred, off, s = call.once(f"centred, {d.dtype}", lambda: fused.statistics(input.base, eps, d.dtype))
    gamma = torch.ones_like(s) if weight is None else weight.detach()
    *scales, unsafe = fused.coefficients(fused.places(d), centred, off, s, gamma)
    if unsafe.any():
        return None
    a, b, c = scales
    return PendingNorm(d, centred, (a, b, c))


def _sum(call: Call, input: Any, other: Any, *, alpha: float = 1) -> Change | None:  # noqa: ANN401
    if alpha != 1 or not (isinstance(input, Moved) or isinstance(other, Moved)):
        return None
    moved = [item for item in (input, other) if isinstance(item, Moved)]
    if any(item.base.shape != call.output.shape for item in moved):
        return None
    pending = next((item.of for item in moved if isinstance(item.of, PendingNorm)), None)
    if pending is None:
        return None
    others = [item for item in moved if item.of is not pending]
    return pending.plus(others[0].change) if others else pending


def _relu(call: Call, input: Any, inplace: bool = False) -> Change | None:  # noqa: ANN401
    if not isinstance(input, Moved) or isinstance(input.of, OneChannel):
        return None
    if isinstance(input.of, PendingNorm):
        return input.of.relu(_base(call, input.base, input.of.d.dtype))
    d = fused.last(input.change)
    return fused.maps(fused.relu(fused.places(d), _base(call, input.base, d.dtype)), d)


def _mean_of_pixels(call: Call, input: Any, output_size: Any) -> Change | None:  # noqa: ANN401
    if not isinstance(input, Moved) or isinstance(input.of, OneChannel) or call.output.shape[2:] != (1, 1):
        return None
    d = fused.last(input.change)
    found = fused.pixel_mean(fused.places(d).view(d.shape[0] * d.shape[1], -1, d.shape[2]))
    return found.view(*d.shape[:3], 1, 1)


def _base(call: Call, x: Tensor, dtype: torch.dtype) -> Tensor:
    return call.once(f"places, {dtype}", lambda: fused.base_places(x, dtype))


_KERNELS: dict[Any, Callable[..., Change | None]] = {
    function: kernel
    for kernel, names in (
        (_convolution, ("conv2d",)),
        (_batch_norm, ("batch_norm",)),
        (_sum, ("add", "__add__", "__radd__")),
        (_relu, ("relu",)),
        (_mean_of_pixels, ("adaptive_avg_pool2d",)),
    )
    for function in named(*names)
}
