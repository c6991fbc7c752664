"""`along`: a convolution along one axis as one product of matrices, for the short rows of small networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def along(x: Tensor, weight: Tensor, wraps: bool) -> Tensor:
    """A convolution that keeps the number of cells, differentiable as often as asked.

    On short rows torch's own takes several times as long as its multiplications.

    Args:
        x: `(channels in, cells, rows)`, the rows last: a tap of the kernel is then one piece of memory.
        weight: `(channels out, channels in, taps)`, an odd number of taps.
        wraps: whether the ends meet; else zeros lie beyond them.

    Returns:
        `(channels out, cells, rows)`.
    """
    return _Along.apply(x, weight, wraps)


class _Along(Function):
    """Of the input the derivative is a convolution as well, with the kernel turned around."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, wraps: bool) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.wraps = wraps
        seen = _taps(x, weight.shape[2], wraps)
        return (weight.movedim(2, 1).flatten(1) @ seen).view(len(weight), *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = along(cotangent, weight.transpose(0, 1).flip(2), ctx.wraps)
        if ctx.needs_input_grad[1]:
            out, given, taps = weight.shape
            if out < given:  # the smaller one is spread out
                both = x.flatten(1) @ _taps(cotangent, taps, ctx.wraps).T
                of_weight = both.view(given, taps, out).flip(1).permute(2, 0, 1)
            else:
                both = cotangent.flatten(1) @ _taps(x, taps, ctx.wraps).T
                of_weight = both.view(out, taps, given).movedim(1, 2)
        return of_x, of_weight, None


def _taps(x: Tensor, taps: int, wraps: bool) -> Tensor:
    """What each tap sees, `(taps * channels, cells * rows)`."""
    if taps == 1:
        return x.flatten(1)
    radius, cells = taps // 2, x.shape[1]
    if not wraps:
        wide = functional.pad(x, (0, 0, radius, radius))
    elif radius <= cells:
        wide = torch.cat([x[:, cells - radius :], x, x[:, :radius]], dim=1)
    else:
        wide = x[:, torch.arange(-radius, cells + radius, device=x.device) % cells]
    return wide.unfold(1, cells, 1).permute(1, 0, 3, 2).flatten(2).flatten(0, 1)
