"""`Kernel`: the geometry of a convolution, and the inputs that its taps read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Kernel:
    """The geometry of a convolution's kernel over its input.

    Attributes:
        size: its taps along each axis.
        stride: the stride of the convolution.
        padding: the padding of the convolution, which may be a word.
        dilation: the dilation of the convolution.
        mode: the mode of the padding, as `functional.pad` calls it.
    """

    size: tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: str | int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    mode: str = "constant"

    def seen_by_taps(self, channels: Tensor, taps: Sequence[Tensor], reached: tuple[int, ...]) -> Tensor:
        """Return the inputs that single weights read.

            y[:, out, p] += step * x[:, in, p * stride + tap * dilation - padding]

        Args:
            channels: `(changes, rows, *space)`, the input channel of each change.
            taps: `(changes,)` for each axis of the kernel: the place of the weight in it.
            reached: size of the output.

        Returns:
            `(changes, rows, *reached)`.
        """
        windows = self.windows(channels, reached)
        return windows[(torch.arange(len(channels), device=channels.device), *taps)]

    def windows(self, channels: Tensor, reached: tuple[int, ...]) -> Tensor:
        """Return the inputs that each tap reads: `(changes, *size, rows, *reached)`, a view.

        Args:
            channels: `(changes, rows, *space)`, the input channel of each change.
            reached: size of the output.
        """
        axes = len(self.size)
        strides, dilations = _per_axis(self.stride, axes), _per_axis(self.dilation, axes)
        pads = _pads(self.padding, dilations, self.size)
        padded = functional.pad(channels, pads, mode=self.mode).contiguous()
        variants, rows, *along = padded.stride()
        return padded.as_strided(
            (len(padded), *self.size, padded.shape[1], *reached),
            (
                variants,
                *(step * d for step, d in zip(along, dilations, strict=True)),
                rows,
                *(step * s for step, s in zip(along, strides, strict=True)),
            ),
        )


def _per_axis(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _pads(
    padding: str | int | tuple[int, ...], dilation: tuple[int, ...], kernel: tuple[int, ...]
) -> list[int]:
    """Return the padding before and after for `functional.pad`: the last axis first."""
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(size, size) for size in _per_axis(padding, len(kernel))]
    return [size for pair in reversed(pairs) for size in pair]
