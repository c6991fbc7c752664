"""Not measured on a GPU: a Triton kernel, the change behind batch norm, a sum and ReLU in one.

It reads a change twice and writes it once. Function by function the same reads and writes some thirty times
as much, and what a pass takes on a GPU is the time in which its memory is read and written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

NONE, FIXED, OF_BATCH = 0, 1, 2  # kinds of norm: none, by running statistics, by those of the batch
TILE = 1024  # numbers that a program holds at a time
TOGETHER = 32  # channels of a program where they are next to each other in memory
FAR = 2**31 - 2**24  # places of a variant are 32 bits, those of a tile beyond its end among them


def change(
    d: Tensor,
    *,
    x: Tensor | None,
    statistics: Tensor | None,
    kind: int,
    other: Tensor | None,
    before: Tensor | None,
    channels: Tensor | None,
    other_channels: Tensor | None = None,
) -> Tensor:
    """The change of relu(norm(x) + y), any part of which may be missing.

    Args:
        d: Change of x, `(variants, rows, channels, ...)`, float32 or float64; with `channels` one channel.
        x: What is normalised, `(rows, channels, ...)`; None where the kind is not `OF_BATCH`.
        statistics: `(6, channels)` of the base: mean, deviation, its square, weight, weight / deviation, eps.
        kind: The kind of the norm: `NONE`, `FIXED` or `OF_BATCH`.
        other: Change of y, as `d`; with `other_channels` of one channel.
        before: What ReLU reads in the base, `(rows, channels, ...)`; None without ReLU.
        channels: `(variants,)` which channel each variant has, where `d` is of one; y does not change then.
        other_channels: The same of `other`.

    Returns:
        As `d`, in its order of memory.
    """
    flat = _flat(d)
    out = torch.empty_like(flat)  # of which `d`'s shape is a view, whatever its order of memory
    rows, width, places = flat.shape[1:]
    nothing = flat.new_empty(0)  # stands for what is not read
    added = nothing if other is None else _flat(other)
    base = nothing if x is None else _flat(x[None])
    prior = nothing if before is None else _flat(before[None])
    strides = [stride for tensor in (out, flat, added, base, prior) for stride in _strides(tensor)]
    together = min(TOGETHER, triton.next_power_of_2(width)) if flat.stride(2) == 1 else 1
    along = min(TILE // together, triton.next_power_of_2(places))
    with torch.cuda.device(d.device if d.is_cuda else -1):
        # along one axis, as of others there are at most 65,535
        launch: Any = _behind[(len(d) * triton.cdiv(width, together),)]  # pyright: ignore[reportIndexIssue]
        launch(
            out,
            flat,
            added,
            base,
            prior,
            nothing if statistics is None else statistics,
            nothing if channels is None else channels,
            nothing if other_channels is None else other_channels,
            *strides,
            len(d),
            rows,
            places,
            width,
            0 if statistics is None else statistics.shape[1],
            NORM=kind,
            ADD=other is not None,
            RELU=before is not None,
            ONE=channels is not None,
            ADD_ONE=other_channels is not None,
            ROWS=TILE // together // along,
            PLACES=along,
            TOGETHER=together,
        )
    return out.view(d.shape)


def _flat(tensor: Tensor) -> Tensor:
    """`(variants, rows, channels, places)`; a copy where its places cannot be one axis, or are far apart."""
    shape = (*tensor.shape[:3], tensor.shape[3:].numel())
    of_one = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    if sum((size - 1) * stride for size, stride in of_one) >= FAR:  # as where variants are innermost
        tensor = tensor.contiguous()
    try:
        return tensor.view(shape)
    except RuntimeError:
        return tensor.reshape(shape)


def _strides(tensor: Tensor) -> Sequence[int]:
    return tensor.stride() if tensor.ndim == 4 else (0, 0, 0, 0)


@triton.jit
def _behind(
    out, d, other, x, before, statistics, channels, other_channels,
    out_v, out_r, out_c, out_p, d_v, d_r, d_c, d_p, other_v, other_r, other_c, other_p,
    x_v, x_r, x_c, x_p, before_v, before_r, before_c, before_p,
    variants, rows, places, width, of_base,
    NORM: tl.constexpr, ADD: tl.constexpr, RELU: tl.constexpr, ONE: tl.constexpr, ADD_ONE: tl.constexpr,
    ROWS: tl.constexpr, PLACES: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """One variant in some channels: statistics of a batch in one reading, what comes behind in another."""
    variant = (tl.program_id(0) % variants).to(tl.int64)
    lane = tl.program_id(0) // variants * TOGETHER + tl.arange(0, TOGETHER)[None, None, :]
    inside = lane < width
    channel = lane
    if ONE:
        channel = lane + tl.load(channels + variant)
    row, place = tl.arange(0, ROWS)[:, None, None], tl.arange(0, PLACES)[None, :, None]
    d += variant * d_v + lane * d_c
    out += variant * out_v + lane * out_c
    added = inside
    if ADD_ONE:  # `0 * lane` for the shape, which Triton 3.4 does not take from the mask
        added = lane == tl.load(other_channels + variant)
        other += variant * other_v + 0 * lane
    else:
        other += variant * other_v + lane * other_c
    x += channel * x_c
    before += channel * before_c
    if NORM == 2:
        mean = tl.load(statistics + channel, inside, 0.0)
        s = tl.load(statistics + of_base + channel, inside, 1.0)
        square = tl.load(statistics + 2 * of_base + channel, inside, 1.0)
        scale = tl.load(statistics + 3 * of_base + channel, inside, 1.0)
        eps = tl.load(statistics + 5 * of_base + channel, inside, 1.0)
        # Sums about the first tile's mean: about zero they would cancel where all of a channel moves by much
        # the same.
        first = tl.load(d + row * d_r + place * d_p, (row < rows) & (place < places) & inside, 0.0)
        about = _sum(first) / (tl.minimum(rows, ROWS) * tl.minimum(places, PLACES))
        moved = tl.zeros([ROWS, PLACES, TOGETHER], d.dtype.element_ty)  # sums of d - about
        moved_squared = tl.zeros_like(moved)
        product = tl.zeros_like(moved)  # of d - about and x - mean
        centre = tl.zeros_like(moved)  # of x - mean, which rounding leaves
        value_squared = tl.zeros_like(moved)  # of both together
        for r in range(0, rows, ROWS):
            for p in range(0, places, PLACES):
                here = (r + row < rows) & (p + place < places) & inside
                e = tl.load(d + (r + row) * d_r + (p + place) * d_p, here, 0.0) - about
                c = tl.load(x + (r + row) * x_r + (p + place) * x_p, here, 0.0) - mean
                e = tl.where(here, e, 0.0)
                c = tl.where(here, c, 0.0)
                moved += e
                moved_squared += e * e
                product += e * c
                centre += c
                value_squared += (c + e) * (c + e)
        size = rows * places
        off, rest = _sum(moved) / size, _sum(centre) / size
        spread = 2 * (_sum(product) / size - off * rest) + (_sum(moved_squared) / size - off * off)
        variance = _sum(value_squared) / size - (off + rest) * (off + rest)
        t = tl.sqrt(tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL) + eps)
        level = about + off
        part = spread / (square + s * t)
        scale = scale / t
    if NORM == 1:
        scale = tl.load(statistics + 4 * of_base + channel, inside, 1.0)
    for r in range(0, rows, ROWS):
        for p in range(0, places, PLACES):
            here = (r + row < rows) & (p + place < places) & inside
            change = tl.load(d + (r + row) * d_r + (p + place) * d_p, here, 0.0)
            if NORM == 2:
                c = tl.load(x + (r + row) * x_r + (p + place) * x_p, here, 0.0) - mean
                change = ((change - level) - c * part) * scale
            if NORM == 1:
                change = change * scale
            if ADD:
                more = tl.load(other + (r + row) * other_r + (p + place) * other_p, here & added, 0.0)
                change += more
            if RELU:
                value = tl.load(before + (r + row) * before_r + (p + place) * before_p, here, 0.0)
                change = tl.maximum(
                    change + tl.minimum(value, 0.0, propagate_nan=tl.PropagateNan.ALL),
                    -tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL),
                    propagate_nan=tl.PropagateNan.ALL,
                )
            tl.store(out + (r + row) * out_r + (p + place) * out_p, change, here)


@triton.jit
def _sum(tile):
    """The sum over rows and places."""
    return tl.sum(tl.sum(tile, 0), 0)[None, None, :]
