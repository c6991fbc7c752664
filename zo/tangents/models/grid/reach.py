"""`measure`: how far a box on a grid carries a change in a call, and which ends of the grid meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zo.tangents.models.maps.lattice import neighbours, padded

RADII = (1, 2, 3, 4, 6, 8, 12, 16, 20)
MOST_FEATURES = 1200
MOST_PAIRS = 400  # products of two
GAIN = 0.9  # of the held-out error: a larger reach that leaves more is not worth its cost
# decision 71:
MEETS = 0.9  # of the error in the cells near the ends: ends meet where less is left than with walls
EXACT = 1e-5  # a mean square error, of standardised changes: what is less needs no more reach
SAMPLES = 8_000  # cells that a stencil is fitted to


@torch.no_grad()
def measure(
    grid: Tensor, change: Tensor, reach: int | None = None, periodic: Sequence[bool] | None = None
) -> tuple[int, tuple[bool, ...]]:
    """The smallest radius of stencils of degree two beyond which little is gained.

    Args:
        grid: inputs `(rows, channels, *space)`, standardised.
        change: the box's outputs, `(rows, channels, *space)`, standardised.
        reach: the reach, where it is known.
        periodic: whether the ends of each axis meet, where that is known; else the ends meet where the other
            end predicts cells near them better.

    Returns:
        The reach, and whether the ends of each axis meet.
    """
    narrow = max(1, min(2, *(n // 2 for n in (4, *grid.shape[2:]))))
    reach_for_ends = narrow if reach is None or _features(grid, reach) > MOST_FEATURES else reach
    ends = _ends(grid, change, reach_for_ends) if periodic is None else tuple(periodic)
    if reach is not None:
        return reach, ends
    radius = _reach(grid, change, ends)
    if periodic is None and not all(ends) and radius > narrow:  # seen from so far, they may be otherwise
        wider = tuple(a or b for a, b in zip(ends, _ends(grid, change, radius), strict=True))
        if wider != ends:
            ends = wider
            radius = _reach(grid, change, ends)
    return radius, ends


def _ends(grid: Tensor, change: Tensor, radius: int) -> tuple[bool, ...]:
    """Say which axes' ends meet: the other end then predicts cells near an end clearly better than walls.

    The stencil is fitted to cells from which no end is seen, so it is the same whatever lies beyond an end. A
    box that no stencil predicts well, such as a projection of all cells, is predicted as badly near ends that
    meet as elsewhere. Of the widest stencil and the narrowest the one is taken that predicts rows better from
    which it was not fitted: few rows along three axes teach a wide one little.
    """
    radius = max(1, min(radius, *(length // 3 for length in grid.shape[2:])))
    if 2 * radius >= min(grid.shape[2:]):  # in two cells all are at an end
        return (False,) * (grid.ndim - 2)
    rows, samples = torch.arange(len(grid)), [(grid, change)]
    training = rows % 4 != 3 if len(rows) > 3 else rows < max(1, len(rows) - 1)
    everywhere = torch.ones_like(training)
    stencils: list[tuple[float, int, Tensor]] = []
    for near in sorted({1, radius}) if len(rows) > 1 else [1]:  # any would predict a single row
        stencil = _fitted(*_inside(samples, training, near))
        design, target = _inside(samples, ~training if len(rows) > 1 else training, near)
        stencils.append((float((design @ stencil - target).square().mean()), near, stencil))
    _, near, stencil = min(stencils, key=lambda candidate: candidate[0])
    if len(rows) <= 3:
        stencil = _fitted(*_inside(samples, everywhere, near))
    ends = []
    for axis in range(2, grid.ndim):
        errors, size = [], 0.0
        for beyond in (_other_end, _nothing, _mirrored, _mirrored_with_sign):
            design, target = _inside(_strips(grid, change, axis, near, beyond), everywhere, near)
            errors.append(float((design @ stencil - target).square().mean()))
            size = float(target.square().mean())
        meeting, walls = errors[0], min(errors[1:])
        ends.append(walls > EXACT * size and meeting < MEETS * walls)
    return tuple(ends)


def _other_end(low: Tensor, high: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the cells beyond the lower and the upper end of an axis, if the ends meet."""
    return high, low


def _nothing(low: Tensor, high: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(low), torch.zeros_like(high)


def _mirrored(low: Tensor, high: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return low.flip(axis), high.flip(axis)


def _mirrored_with_sign(low: Tensor, high: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return -low.flip(axis), -high.flip(axis)


def _strips(
    grid: Tensor, change: Tensor, axis: int, near: int, beyond: Callable[..., tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """The cells near the ends of an axis, with those around them; beyond the ends lies what is supposed."""
    last = grid.shape[axis] - near
    below, above = beyond(grid.narrow(axis, 0, near), grid.narrow(axis, last, near), axis)
    lower = torch.cat([below, grid.narrow(axis, 0, 2 * near)], axis)
    upper = torch.cat([grid.narrow(axis, last - near, 2 * near), above], axis)
    ghosts = torch.zeros_like(change.narrow(axis, 0, near))  # of cells that are not asked about
    changes = (
        torch.cat([ghosts, change.narrow(axis, 0, 2 * near)], axis),
        torch.cat([change.narrow(axis, last - near, 2 * near), ghosts], axis),
    )
    return list(zip((lower, upper), changes, strict=True))


def _inside(samples: Sequence[tuple[Tensor, Tensor]], among: Tensor, near: int) -> tuple[Tensor, Tensor]:
    """The design of cells further than `near` from the ends of each part, and its targets."""
    rows, most = among.nonzero()[:, 0], _cells_for(samples[0][0], near) // len(samples)
    generator, parts = torch.Generator().manual_seed(0), []
    for grid, change in samples:
        lengths = [length - 2 * near for length in grid.shape[2:]]
        per_row = math.prod(lengths)
        count = min(most, len(rows) * per_row)
        whole = len(rows) * per_row
        draws = torch.arange(whole) if count == whole else torch.randint(whole, (count,), generator=generator)
        corner = torch.unravel_index(draws, (len(rows), *lengths))
        row = rows[corner[0].to(rows.device)].to(grid.device)
        corner = [place.to(grid.device) for place in corner[1:]]
        cells = [place + near for place in corner]

        def around(
            narrower: int, grid: Tensor = grid, row: Tensor = row, corner: list[Tensor] = corner
        ) -> Tensor:
            windows = grid
            for axis in range(2, grid.ndim):
                windows = windows.unfold(axis, 2 * narrower + 1, 1)
            return windows[row, :, *(place + near - narrower for place in corner)].flatten(1).double()

        in_cell, target = (numbers[row, :, *cells].double() for numbers in (grid, change))
        parts.append((_design(around, in_cell, near), target))
    designs, targets = zip(*parts, strict=True)
    return torch.cat(designs), torch.cat(targets)


def _reach(grid: Tensor, change: Tensor, ends: tuple[bool, ...]) -> int:
    space = grid.shape[2:]
    best, least = 1, _held_out(grid, change, 1, ends)
    for radius in RADII[1:]:
        if least < EXACT or 2 * radius + 1 > max(space) or _features(grid, radius) > MOST_FEATURES:
            break
        error = _held_out(grid, change, radius, ends)
        if error < GAIN * least:
            best, least = radius, error
    return best


def _features(grid: Tensor, radius: int) -> int:
    return 2 * grid.shape[1] * (2 * radius + 1) ** (grid.ndim - 2)


def _held_out(x: Tensor, change: Tensor, radius: int, periodic: Sequence[bool]) -> float:
    """The mean square error of ridge least squares, on every fourth row."""
    training, cells = _kept(x), _cells_for(x, radius)
    stencil = _fitted(*_taken(x, change, training, cells, radius, periodic))
    design, target = _taken(
        x, change, ~training if bool((~training).any()) else training, cells, radius, periodic
    )
    return float((design @ stencil - target).square().mean())


def _kept(x: Tensor) -> Tensor:
    """Say which rows a stencil is fitted to; the others judge it."""
    rows = torch.arange(len(x))
    return rows % 4 != 3 if len(x) > 3 else rows >= 0


def _cells_for(x: Tensor, radius: int) -> int:
    """Cells that a stencil is fitted to, which bounds the memory."""
    features = 2 * MOST_PAIRS + x.shape[1] * (2 * radius + 1) ** (x.ndim - 2)
    return min(SAMPLES, 64_000_000 // features)


def _fitted(design: Tensor, target: Tensor) -> Tensor:
    """Ridge least squares."""
    gram = design.T @ design
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    return torch.cholesky_solve(design.T @ target, torch.linalg.cholesky(gram))


def _taken(
    x: Tensor, change: Tensor, among: Tensor, count: int, radius: int, periodic: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """The design and its targets, of all cells of some rows, or of some cells where rows have many."""
    per_row = x[0, 0].numel()
    if per_row <= SAMPLES:
        rows = _spread(among, max(1, count // per_row))
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
    row, *cells = (place.to(x.device) for place in places)
    in_cell, target = (grid[row, :, *cells].double() for grid in (x, change))

    def around(near: int) -> Tensor:
        windows = padded(x, near, periodic)
        for axis in range(2, x.ndim):
            windows = windows.unfold(axis, 2 * near + 1, 1)
        return windows[row, :, *cells].flatten(1).double()

    return _design(around, in_cell, radius), target


def _spread(among: Tensor, most: int) -> Tensor:
    """Take at most so many of the rows, from first to last: rows in a sequence are often similar."""
    rows = among.nonzero()[:, 0]
    return rows[:: -(-len(rows) // most)]


def _design(around: Callable[[int], Tensor], in_cell: Tensor, radius: int) -> Tensor:
    """Return the features of each cell: its surroundings, products of them, and a one, in float64.

    The products are of two numbers near by, as far as these are few, and of all numbers with the cell's own.

    Args:
        around: gives the numbers so near to each cell, `(cells, channels * stencil)`.
        in_cell: the numbers in the cell, `(cells, channels)`.
        radius: the radius of the stencil.
    """
    wide = around(radius)
    parts, stencil = [wide, torch.ones_like(wide[:, :1])], wide.shape[1] // in_cell.shape[1]
    if wide.shape[1] * in_cell.shape[1] <= MOST_PAIRS:
        parts += [wide * channel[:, None] for channel in in_cell.T]
    axes = round(math.log(stencil) / math.log(2 * radius + 1))
    for near in range(radius, 0, -1):
        size = in_cell.shape[1] * (2 * near + 1) ** axes
        if size * (size + 1) // 2 <= MOST_PAIRS:
            close = around(near)
            first, second = torch.triu_indices(size, size)
            parts.append(close[:, first] * close[:, second])
            break
    return torch.cat(parts, dim=1)


def _cells(grid: Tensor) -> Tensor:
    return grid.movedim(1, -1).flatten(0, -2).double()
