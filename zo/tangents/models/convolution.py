"""`Convolutions`: those of small networks on a grid, and the ways back through them, without a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zo.tangents.models.lattice import padded

CONVOLVED = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
BY_KERNEL = {1: nn.grad.conv1d_weight, 2: nn.grad.conv2d_weight, 3: nn.grad.conv3d_weight}


class Convolutions:
    """Convolutions that keep the number of cells.

    Along one axis each is one product of matrices, with the rows last in memory, so that what a tap of the
    kernel sees is one piece of it: on short rows torch's own takes several times as long as its
    multiplications. On more axes it is torch's own, rows first.

    Args:
        line: whether there is one axis of few cells. Arrays are `(channels, cells, rows)` then, else `(rows,
            channels, *cells)`. Kernels are `(out, in, *taps)`, odd numbers of taps.
        periodic: for each axis whether the ends meet; else zeros lie beyond them.

    Attributes:
        channels: their axis.
        rows: that of the rows.
    """

    def __init__(self, line: bool, periodic: Sequence[bool]) -> None:
        self.line, self.periodic = line, tuple(periodic)
        self.channels, self.rows = (0, 2) if line else (1, 0)

    def __call__(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The convolution, and what its kernel has seen of x, for the way back."""
        if not self.line:
            around = padded(x, kernel.shape[2] // 2, self.periodic)
            return CONVOLVED[x.ndim - 2](around, kernel, bias), around
        seen = _taps(x, kernel.shape[2], self.periodic[0])
        matrix = kernel.movedim(2, 1).flatten(1)
        found = matrix @ seen if bias is None else torch.addmm(bias[:, None], matrix, seen)
        return found.view(len(kernel), *x.shape[1:]), seen

    def back(self, cotangent: Tensor, kernel: Tensor) -> Tensor:
        """The transpose: a convolution as well, with the kernel turned around."""
        if not self.line:
            around = padded(cotangent, kernel.shape[2] // 2, self.periodic)
            turned = kernel.transpose(0, 1).flip(tuple(range(2, kernel.ndim)))
            return CONVOLVED[cotangent.ndim - 2](around, turned)
        return self._back(_taps(cotangent, kernel.shape[2], self.periodic[0]), cotangent, kernel)

    def back_to_both(
        self, x: Tensor, seen: Tensor, cotangent: Tensor, kernel: Tensor, slope: Tensor
    ) -> Tensor:
        """`back`, and the derivative by the kernel, which is written to `slope`."""
        if not self.line or len(kernel) >= kernel.shape[1]:
            self.to_kernel(seen, cotangent, slope)
            return self.back(cotangent, kernel)
        out, given, taps = kernel.shape
        spread = _taps(cotangent, taps, self.periodic[0])  # the smaller of the two, once for both
        both = (spread @ x.flatten(1).T).view(taps, out, given)
        slope.copy_(both.flip(0).permute(1, 2, 0))
        return self._back(spread, cotangent, kernel)

    def to_kernel(self, seen: Tensor, cotangent: Tensor, slope: Tensor) -> None:
        """The derivative by the kernel, written to `slope`."""
        if self.line:
            both = cotangent.flatten(1) @ seen.T
            slope.copy_(both.view(slope.shape[0], slope.shape[2], slope.shape[1]).movedim(1, 2))
        else:
            slope.copy_(BY_KERNEL[seen.ndim - 2](seen, slope.shape, cotangent))

    def to_bias(self, cotangent: Tensor, slope: Tensor) -> None:
        """The derivative by a number that is added to each channel, written to `slope`."""
        axes = (1, 2) if self.line else (0, *range(2, cotangent.ndim))
        torch.sum(cotangent, axes, out=slope)

    def _back(self, spread: Tensor, cotangent: Tensor, kernel: Tensor) -> Tensor:
        turned = kernel.permute(1, 2, 0).flip(1).flatten(1)
        return (turned @ spread).view(kernel.shape[1], *cotangent.shape[1:])


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
