"""`Convolutions`: those of small networks on a grid, and the ways back through them, without a graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from zo.tangents.models.maps.lattice import padded

CONVOLVED = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
BY_KERNEL = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
FEW = 8  # times as many channels in as out: the latter are few


class Convolutions:
    """Convolutions that keep the number of cells.

    Along one axis a convolution is one product of matrices, with the rows last in memory, so that the inputs
    of each tap of the kernel are one piece of memory: on short rows torch's own convolution takes several
    times as long as its multiplications. On more axes it is torch's own, rows first and channels last in
    memory. But from many channels to few it is a product in each cell, and each tap takes its part of that:
    torch's own takes as long for one channel as for sixteen.

    Args:
        line: whether there is one axis of few cells. Arrays are `(channels, cells, rows)` then, else `(rows,
            channels, *cells)`. Kernels are `(out, in, *taps)`, odd numbers of taps.
        periodic: for each axis whether the ends meet; else zeros lie beyond them.

    Attributes:
        channels: the axis of the channels.
        rows: the axis of the rows.
    """

    def __init__(self, line: bool, periodic: Sequence[bool]) -> None:
        self.line, self.periodic = line, tuple(periodic)
        self.channels, self.rows = (0, 2) if line else (1, 0)

    def __call__(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The convolution, and what its kernel has seen of x, for the way back."""
        if not self.line:
            if _to_few(kernel):
                answer = self._in_cells(x, kernel)
                return answer if bias is None else answer + bias.view(-1, *[1] * len(self.periodic)), x
            around = self._around(x, kernel)
            return CONVOLVED[x.ndim - 2](around, kernel, bias), around
        patches = _taps(x, kernel.shape[2], self.periodic[0])
        matrix = kernel.movedim(2, 1).flatten(1)
        answer = matrix @ patches if bias is None else torch.addmm(bias[:, None], matrix, patches)
        return answer.view(len(kernel), *x.shape[1:]), patches

    def turned(self, kernel: Tensor) -> Tensor:
        """Return the kernel turned around, which `back` multiplies by."""
        return kernel.permute(1, 2, 0).flip(1).flatten(1) if self.line else _turned(kernel)

    def back(self, cotangent: Tensor, kernel: Tensor, turned: Tensor | None = None) -> Tensor:
        """The transpose: a convolution as well, with the kernel turned around.

        Args:
            cotangent: the gradient of the outputs.
            kernel: the kernel of the convolution.
            turned: the kernel turned around, if that is known.
        """
        turned = self.turned(kernel) if turned is None else turned
        if not self.line:
            if _to_few(turned):
                return self._in_cells(cotangent, turned)
            return CONVOLVED[cotangent.ndim - 2](self._around(cotangent, kernel), turned)
        spread = _taps(cotangent, kernel.shape[2], self.periodic[0])
        return (turned @ spread).view(len(turned), *cotangent.shape[1:])

    def back_to_both(
        self, x: Tensor, seen: Tensor, cotangent: Tensor, kernel: Tensor, slope: Tensor
    ) -> Tensor:
        """`back`, and the derivative by the kernel, which is written to `slope`."""
        if not self.line or len(kernel) >= kernel.shape[1]:
            self.to_kernel(seen, cotangent, slope)
            return self.back(cotangent, kernel)
        out, size_in, taps = kernel.shape
        spread = _taps(cotangent, taps, self.periodic[0])  # the smaller of the two, once for both
        both = (spread @ x.flatten(1).T).view(taps, out, size_in)
        slope.copy_(both.flip(0).permute(1, 2, 0))
        return (self.turned(kernel) @ spread).view(size_in, *cotangent.shape[1:])

    def to_kernel(self, seen: Tensor, cotangent: Tensor, slope: Tensor) -> None:
        """The derivative by the kernel, written to `slope`."""
        if self.line:
            both = cotangent.flatten(1) @ seen.T
            slope.copy_(both.view(slope.shape[0], slope.shape[2], slope.shape[1]).movedim(1, 2))
        elif _to_few(slope):  # seen is x itself, which takes the cotangent's part
            around, shape = self._around(cotangent, slope), slope.transpose(0, 1).shape
            slope.copy_(_turned(BY_KERNEL[seen.ndim - 2](around, shape, seen)))
        else:
            slope.copy_(BY_KERNEL[seen.ndim - 2](seen, slope.shape, cotangent))

    def to_bias(self, cotangent: Tensor, slope: Tensor) -> None:
        """The derivative by a number that is added to each channel, written to `slope`."""
        axes = (1, 2) if self.line else (0, *range(2, cotangent.ndim))
        torch.sum(cotangent, axes, out=slope)

    def _around(self, x: Tensor, kernel: Tensor) -> Tensor:
        """The cells with those that the kernel sees beyond the ends."""
        around = padded(x, kernel.shape[2] // 2, self.periodic)
        return around.contiguous(memory_format=FORMATS[around.ndim - 2])

    def _in_cells(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve by multiplying all taps in each cell in one product, and then adding them up."""
        axes, taps, out = x.ndim - 2, kernel.shape[2], len(kernel)
        by_tap = kernel.movedim(1, -1).reshape(-1, kernel.shape[1], *[1] * axes)
        parts = padded(CONVOLVED[axes](x, by_tap), taps // 2, self.periodic)
        parts = parts.unflatten(1, (out, -1))
        total = x.new_zeros(len(x), out, *x.shape[2:])
        for place, first in enumerate(itertools.product(range(taps), repeat=axes)):
            cells = (slice(start, start + length) for start, length in zip(first, x.shape[2:], strict=True))
            total += parts[:, :, place, *cells]
        return total


def _to_few(kernel: Tensor) -> bool:
    return FEW * kernel.shape[0] <= kernel.shape[1]


def _turned(kernel: Tensor) -> Tensor:
    """The kernel of the way back."""
    return kernel.transpose(0, 1).flip(tuple(range(2, kernel.ndim)))


def _taps(x: Tensor, taps: int, wraps: bool) -> Tensor:
    """Return the inputs of each tap, `(taps * channels, cells * rows)`."""
    if taps == 1:
        return x.flatten(1)
    radius, cells = taps // 2, x.shape[1]
    if not wraps:
        wide = functional.pad(x, (0, 0, radius, radius))
    elif radius <= cells:
        wide = torch.cat([x[:, cells - radius :], x, x[:, :radius]], dim=1)
    else:
        wide = x[:, torch.arange(-radius, cells + radius, device=x.device) % cells]
    channels, length, rows = wide.shape
    patches = wide.as_strided((taps, channels, cells * rows), (rows, length * rows, 1))
    return patches.reshape(taps * channels, cells * rows)
