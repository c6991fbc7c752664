"""`Lattice`: arrays `(channels, *space)` of a box on one grid of cells, joined into one and split again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from blackbox import ArraySpec, Grid
from zo.errors import ConfigurationError

Shape = tuple[int, ...]

MOST_CHANNELS = 16  # of an array whose spec does not say what its first axis is


@dataclass(frozen=True)
class Lattice:
    """The places of a row's arrays on a grid.

    A staggered array has one cell more along an axis than others; all begin at the same corner, so what has
    the same index is next to one another. An array that does not lie on the grid, such as a number that says
    what case it is, is a channel of its own for each of its numbers, the same in all cells.

    Attributes:
        shapes: the shapes of the arrays, end to end in a row.
        space: cells along each axis, of the largest.
    """

    shapes: tuple[Shape, ...]
    space: Shape

    @property
    def channels(self) -> int:
        """The number of channels of all arrays together."""
        return sum(self.channels_of(shape) for shape in self.shapes)

    def on_grid(self, shape: Shape) -> bool:
        """Say whether an array of that shape has a number in each cell, but for the last faces of an axis."""
        cells = shape[1:] if len(shape) > len(self.space) else shape
        return (
            len(cells) == len(self.space)
            and len(shape) <= len(self.space) + 1
            and all(most - 1 <= length <= most for length, most in zip(cells, self.space, strict=True))
        )

    @property
    def shared(self) -> tuple[slice, ...]:
        """The cells that all arrays have."""
        fewest = [
            min(shape[len(shape) - len(self.space) :][axis] for shape in self.shapes)
            for axis in range(len(self.space))
        ]
        return tuple(slice(length) for length in fewest)

    def varies_by_cell(self) -> list[bool]:
        """Say for each channel whether it has a number in each cell."""
        return [self.on_grid(shape) for shape in self.shapes for _ in range(self.channels_of(shape))]

    def groups(self) -> Tensor:
        """The channel of each number, for those that share a unit: `(numbers of a row,)`."""
        groups, first = [], 0
        for shape in self.shapes:
            channels, size = self.channels_of(shape), math.prod(shape)
            groups.append(first + torch.arange(channels).repeat_interleave(size // channels))
            first += channels
        return torch.cat(groups) if groups else torch.zeros(0, dtype=torch.long)

    @cached_property
    def whole(self) -> bool:
        """True if each array has a number in each cell: a row is then its channels one after another."""
        axes = len(self.space)
        return all(self.on_grid(shape) and shape[len(shape) - axes :] == self.space for shape in self.shapes)

    def joined(self, flat: Tensor) -> Tensor:
        """`(rows, numbers of a row)` to `(rows, channels, *space)`, zero where an array has no cell."""
        if self.whole:
            return flat.reshape(len(flat), -1, *self.space)
        rows, grids = len(flat), []
        for shape, array in zip(
            self.shapes, flat.split([math.prod(shape) for shape in self.shapes], 1), strict=True
        ):
            if not self.on_grid(shape):
                grids.append(array.reshape(rows, -1, *[1] * len(self.space)).expand(-1, -1, *self.space))
                continue
            cells = shape[len(shape) - len(self.space) :]
            gaps = [most - length for most, length in zip(self.space, cells, strict=True)]
            around = [n for length in reversed(gaps) for n in (0, length)]
            grids.append(functional.pad(array.reshape(rows, -1, *cells), around))
        return torch.cat(grids, dim=1)

    def split(self, joined: Tensor) -> Tensor:
        """The way back, for arrays that all lie on the grid."""
        return joined.flatten(1) if self.whole else self.gathered(joined)

    def gathered(self, joined: Tensor) -> Tensor:
        """The transpose of `joined`: the sum over all cells for an array that does not lie on the grid."""
        if self.whole:
            return joined.flatten(1)
        parts = []
        channels = [self.channels_of(shape) for shape in self.shapes]
        for shape, array in zip(self.shapes, joined.split(channels, dim=1), strict=True):
            if not self.on_grid(shape):
                parts.append(array.flatten(2).sum(2))
                continue
            cells = shape[len(shape) - len(self.space) :]
            parts.append(array[(..., *(slice(length) for length in cells))].flatten(1))
        return torch.cat(parts, dim=1)

    def cropped(self, row: Tensor, cells: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Some cells of a row, without joining all of them.

        Args:
            row: `(numbers of a row,)`.
            cells: along each axis which, whole numbers from 0 on; of others there are none.

        Returns:
            `(channels, *cells)`, and which of them are there, bool.
        """
        grids, masks = [], []
        for shape, array in zip(
            self.shapes, row.split([math.prod(shape) for shape in self.shapes]), strict=True
        ):
            lengths = tuple(map(len, cells))
            if not self.on_grid(shape):
                grids.append(array.reshape(-1, *[1] * len(cells)).expand(-1, *lengths))
                masks.append(torch.ones_like(grids[-1], dtype=torch.bool))
                continue
            extent = shape[len(shape) - len(self.space) :]
            grid = array.reshape(-1, *extent)
            inside = torch.ones(lengths, dtype=torch.bool, device=row.device)
            for axis, (length, places) in enumerate(zip(extent, cells, strict=True)):
                grid = grid.index_select(axis + 1, places.clamp(0, length - 1))
                valid = (places >= 0) & (places < length)
                inside = inside & valid.reshape([-1 if n == axis else 1 for n in range(len(cells))])
            grids.append(grid)
            masks.append(inside.expand(len(grid), *lengths))
        return torch.cat(grids), torch.cat(masks)

    def channels_of(self, shape: Shape) -> int:
        """Count the channels of an array of that shape: off the grid each of its numbers is one."""
        if not self.on_grid(shape):
            return math.prod(shape)
        return math.prod(shape[: len(shape) - len(self.space)])


def space_of(outputs: Sequence[ArraySpec], inputs: Sequence[ArraySpec] = ()) -> Shape | None:
    """The cells of the grid that outputs lie on, the larger if staggered; or None.

    Where all outputs have as many axes, the first one holds channels, and a vector is one channel along one
    axis. Where some have one axis more than others, these have channels and the others are a channel each.

    In three cases arrays have no channels, and all of their axes are space: several outputs whose first and
    last axes have more than 16 entries; one output whose spec says that it lies on a grid; and outputs beside
    an input of such arrays, `(channels, *shape)`. If `Grid(periodic=...)` has an entry for each axis, these
    are the axes.

    Args:
        outputs: the specs of the differentiable outputs.
        inputs: the specs of the differentiable inputs.
    """
    spaces = _spaces(outputs)
    grids = [spec.layout for spec in outputs if isinstance(spec.layout, Grid)]
    axes = {len(grid.periodic) for grid in grids if isinstance(grid.periodic, tuple)}
    choices = [space for space in spaces if axes == {len(space)}]
    if choices or len(spaces) < 2:
        return (choices or spaces or [None])[0]
    behind, whole = spaces  # the axes behind the first, or all
    fewest = min(min(spec.shape[0], spec.shape[-1]) for spec in outputs)
    if fewest > MOST_CHANNELS and (len(outputs) > 1 or grids):
        return whole
    fields = {space: any(_has_channels(spec, space) for spec in inputs) for space in spaces}
    return whole if fields[whole] and not fields[behind] else behind


def _spaces(outputs: Sequence[ArraySpec]) -> list[Shape]:
    """The grids that arrays of these shapes may lie on, the one with channels in all of them first."""
    shapes, spaces = [spec.shape for spec in outputs], []
    fewest, most = min(map(len, shapes), default=0), max(map(len, shapes), default=0)
    for axes in range(max(most - 1, 1), min(most, 3) + 1):
        if fewest < axes:
            continue
        lengths = list(zip(*(shape[len(shape) - axes :] for shape in shapes), strict=True))
        if all(max(along) - min(along) <= 1 for along in lengths):
            spaces.append(tuple(max(along) for along in lengths))
    return spaces


def _has_channels(spec: ArraySpec, space: Shape) -> bool:
    """Say whether an array is `(channels, *space)`."""
    lacks_channels = spec.layout is None or len(spec.shape) != len(space) + 1
    return not lacks_channels and Lattice((spec.shape,), space).on_grid(spec.shape)


def checked_ends(who: str, periodic: bool | Sequence[bool] | None) -> bool | tuple[bool, ...] | None:
    """The setting `periodic` in plain values.

    Raises:
        ConfigurationError: it is something else.
    """
    if periodic is None or isinstance(periodic, bool):
        return periodic
    if not isinstance(periodic, Sequence) or not all(isinstance(meets, bool) for meets in periodic):
        raise ConfigurationError(
            f"{who}, periodic: expected True, False, one of these for each axis, or None, got {periodic!r}. "
            "True is for a grid whose ends meet; None measures it."
        )
    return tuple(periodic)


def ends_of(who: str, periodic: bool | tuple[bool, ...] | None, axes: int) -> tuple[bool, ...] | None:
    """Say whether the ends of each axis meet; None if that is to be measured.

    Raises:
        ConfigurationError: `periodic` is for another number of axes.
    """
    by_axis = (periodic,) * axes if isinstance(periodic, bool) else periodic
    if by_axis is not None and len(by_axis) != axes:
        raise ConfigurationError(
            f"{who}, periodic: expected one for each of {axes} axes, got {by_axis}. True is for all."
        )
    return by_axis


def padded(grid: Tensor, radius: int, periodic: Sequence[bool]) -> Tensor:
    """`(rows, channels, *space)` with so many cells more on each side: the other end's, or zeros."""
    if not radius:
        return grid
    for axis, wraps in enumerate(periodic):
        around = [0, 0] * (len(periodic) - 1 - axis) + [radius, radius]
        whole, dim = grid.shape[2 + axis], 2 + axis
        if wraps and radius <= whole:  # without an index, which takes as long as a convolution
            ends = grid.narrow(dim, whole - radius, radius), grid.narrow(dim, 0, radius)
            grid = torch.cat([ends[0], grid, ends[1]], dim)
        elif wraps:
            places = torch.arange(-radius, whole + radius, device=grid.device) % whole
            grid = grid.index_select(dim, places)
        else:
            grid = functional.pad(grid, around)
    return grid


def neighbours(grid: Tensor, radius: int, periodic: Sequence[bool]) -> Tensor:
    """Gather cells around each cell: `(rows, channels, *space)` to `(rows, *space, channels * stencil)`."""
    windows, axes = padded(grid, radius, periodic), grid.ndim - 2
    for axis in range(2, grid.ndim):
        windows = windows.unfold(axis, 2 * radius + 1, 1)
    return windows.movedim(1, 1 + axes).flatten(1 + axes)


def weighed(grid: Tensor, weights: Tensor, radius: int, periodic: Sequence[bool]) -> Tensor:
    """`neighbours(...) @ weights`, `(rows, *space, n)`, without the memory of all neighbours.

    A matrix product comes first, and then the sum over places: a convolution has other precision on a GPU.

    Args:
        grid: `(rows, channels, *space)`.
        weights: `(channels * stencil, n)`.
        radius: how far neighbours are from a cell.
        periodic: which ends of the grid meet.
    """
    channels, axes, count = grid.shape[1], grid.ndim - 2, weights.shape[1]
    by_place = weights.unflatten(0, (channels, -1)).flatten(1)
    products = (padded(grid, radius, periodic).movedim(1, -1) @ by_place).contiguous()
    side, (first, *along, _) = 2 * radius + 1, products.stride()
    to_place = [count * side ** (axes - 1 - axis) for axis in range(axes)]
    shape = (len(grid), *grid.shape[2:], *[side] * axes, count)
    strides = (first, *along, *(s + t for s, t in zip(along, to_place, strict=True)), 1)
    return products.as_strided(shape, strides).sum(tuple(range(1 + axes, 1 + 2 * axes)))
