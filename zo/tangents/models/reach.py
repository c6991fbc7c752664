"""`measure`: how far a box on a grid carries a change in a call, and which ends of the grid meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zo.tangents.models.lattice import neighbours, padded

RADII = (1, 2, 3, 4, 6, 8, 12, 16, 20)
MOST_FEATURES = 1200
MOST_PAIRS = 400  # products of two
GAIN = 0.9  # of the held-out error: a larger reach that leaves more is not worth its cost
EXACT = 1e-5  # a mean square error, of standardised changes: what is less needs no more reach
SAMPLES = 8_000  # cells that a stencil is fitted to


@torch.no_grad()
def measure(
    grid: Tensor, change: Tensor, reach: int | None = None, periodic: Sequence[bool] | None = None
) -> tuple[int, tuple[bool, ...]]:
    """The smallest radius of stencils of degree two beyond which little is gained.

    Args:
        grid: inputs `(rows, channels, *space)`, standardised.
        change: what the box makes of them, `(rows, channels, *space)`, standardised.
        reach: where it is known.
        periodic: for each axis, where it is known; else that under which cells near the ends are told better.

    Returns:
        The reach, and whether the ends of each axis meet.
    """
    axes, narrow = grid.ndim - 2, max(1, min(2, *(n // 2 for n in (4, *grid.shape[2:]))))
    known = narrow if reach is None or _features(grid, reach) > MOST_FEATURES else reach
    ends = _ends(grid, change, known, (False,) * axes) if periodic is None else tuple(periodic)
    if reach is not None:
        return reach, ends
    found = _reach(grid, change, ends)
    if periodic is None and not all(ends) and found > narrow:  # seen from so far, they may be otherwise
        wider = _ends(grid, change, found, ends)
        if wider != ends:
            ends = wider
            found = _reach(grid, change, ends)
    return found, ends


def _ends(grid: Tensor, change: Tensor, radius: int, ends: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which ends meet: of each axis, as long as it tells the cells clearly better than a wall."""
    least = _held_out(grid, change, radius, ends)
    for axis in range(len(ends)):
        other = (*ends[:axis], True, *ends[axis + 1 :])
        error = least if ends[axis] else _held_out(grid, change, radius, other)
        if least > EXACT and error < 0.97 * least:
            ends, least = other, error
    return ends


def _reach(grid: Tensor, change: Tensor, ends: tuple[bool, ...]) -> int:
    space = grid.shape[2:]
    chosen, least = 1, _held_out(grid, change, 1, ends)
    for radius in RADII[1:]:
        if least < EXACT or 2 * radius + 1 > max(space) or _features(grid, radius) > MOST_FEATURES:
            break
        error = _held_out(grid, change, radius, ends)
        if error < GAIN * least:
            chosen, least = radius, error
    return chosen


def _features(grid: Tensor, radius: int) -> int:
    return 2 * grid.shape[1] * (2 * radius + 1) ** (grid.ndim - 2)


def _held_out(x: Tensor, change: Tensor, radius: int, periodic: Sequence[bool]) -> float:
    """The mean square error of ridge least squares, on every fourth row."""
    rows = torch.arange(len(x))
    kept = rows % 4 != 3 if len(x) > 3 else rows >= 0
    features = 2 * MOST_PAIRS + x.shape[1] * (2 * radius + 1) ** len(periodic)
    cells = min(SAMPLES, 64_000_000 // features)  # which bounds the memory
    design, wanted = _taken(x, change, kept, cells, radius, periodic)
    gram = design.T @ design
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    found = torch.cholesky_solve(design.T @ wanted, torch.linalg.cholesky(gram))
    design, wanted = _taken(x, change, ~kept if bool((~kept).any()) else kept, cells, radius, periodic)
    return float((design @ found - wanted).square().mean())


def _taken(
    x: Tensor, change: Tensor, among: Tensor, count: int, radius: int, periodic: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """The design and what it is to tell, of all cells of some rows, or of some cells where rows have many."""
    each = x[0, 0].numel()
    if each <= SAMPLES:
        rows = _spread(among, max(1, count // each))
        x = x[rows]
        return _design(
            lambda near: neighbours(x, near, periodic).flatten(0, -2).double(), _cells(x), radius
        ), _cells(change[rows])
    rows = among.nonzero()[:, 0]
    generator, space = torch.Generator().manual_seed(0), x.shape[2:]
    places = [rows[torch.randint(len(rows), (count,), generator=generator)]]
    for length in space:
        anywhere = torch.randint(length, (count,), generator=generator)
        at_ends = torch.randint(-radius, radius, (count,), generator=generator) % length
        places.append(
            torch.where(torch.arange(count) % (2 * len(space)) == len(places) - 1, at_ends, anywhere)
        )
    row, *cells = (each.to(x.device) for each in places)
    own, told = (grid[row, :, *cells].double() for grid in (x, change))

    def around(near: int) -> Tensor:
        windows = padded(x, near, periodic)
        for axis in range(2, x.ndim):
            windows = windows.unfold(axis, 2 * near + 1, 1)
        return windows[row, :, *cells].flatten(1).double()

    return _design(around, own, radius), told


def _spread(among: Tensor, most: int) -> Tensor:
    """At most so many of the rows, from first to last: rows that follow each other are often alike."""
    rows = among.nonzero()[:, 0]
    return rows[:: -(-len(rows) // most)]


def _design(around: Callable[[int], Tensor], own: Tensor, radius: int) -> Tensor:
    """What lies around each cell, products of that, and a one: `(cells, features)`, float64.

    Products of two numbers near by, as far as they are few, and of all with what lies in the cell itself.

    Args:
        around: what lies so near to each cell, `(cells, channels * stencil)`.
        own: what lies in it, `(cells, channels)`.
        radius: of the stencil.
    """
    wide = around(radius)
    parts, stencil = [wide, torch.ones_like(wide[:, :1])], wide.shape[1] // own.shape[1]
    if wide.shape[1] * own.shape[1] <= MOST_PAIRS:
        parts += [wide * each[:, None] for each in own.T]
    axes = round(math.log(stencil) / math.log(2 * radius + 1))
    for near in range(radius, 0, -1):
        size = own.shape[1] * (2 * near + 1) ** axes
        if size * (size + 1) // 2 <= MOST_PAIRS:
            close = around(near)
            first, second = torch.triu_indices(size, size)
            parts.append(close[:, first] * close[:, second])
            break
    return torch.cat(parts, dim=1)


def _cells(grid: Tensor) -> Tensor:
    return grid.movedim(1, -1).flatten(0, -2).double()
