"""`measure`: how far a box on a grid carries a change in a call, and which ends of the grid meet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from zo.tangents.models.lattice import neighbours

RADII = (1, 2, 3, 4, 6, 8, 12, 16, 20)
MOST_FEATURES = 1200
MOST_PAIRS = 400  # products of two
GAIN = 0.9  # of the held-out error: a larger reach that leaves more is not worth its cost
SAMPLES = 20_000  # cells that a stencil is fitted to


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
    space = grid.shape[2:]
    if periodic is None:
        narrow = min(2, *(n // 2 for n in space)) if len(space) > 1 else min(2, space[0] // 2)
        kinds = list(itertools.product((False, True), repeat=len(space)))
        errors = [_held_out(grid, change, max(narrow, 1), kind) for kind in kinds]
        best = min(range(len(kinds)), key=lambda n: errors[n])
        periodic = kinds[best] if errors[best] < 0.97 * errors[0] else kinds[0]
    if reach is not None:
        return reach, tuple(periodic)
    chosen, least = 1, _held_out(grid, change, 1, periodic)
    for radius in RADII[1:]:
        if 2 * radius + 1 > max(space) or 2 * grid.shape[1] * (2 * radius + 1) ** len(space) > MOST_FEATURES:
            break
        error = _held_out(grid, change, radius, periodic)
        if error < GAIN * least:
            chosen, least = radius, error
    return chosen, tuple(periodic)


def _held_out(x: Tensor, change: Tensor, radius: int, periodic: Sequence[bool]) -> float:
    """The mean square error of ridge least squares, on every fourth row."""
    rows = torch.arange(len(x))
    kept = rows % 4 != 3 if len(x) > 3 else rows >= 0
    features = 2 * MOST_PAIRS + x.shape[1] * (2 * radius + 1) ** len(periodic)
    most = max(1, min(SAMPLES, 64_000_000 // features) // x[0, 0].numel())  # rows, which bounds the memory
    design, wanted = _design(x[kept][:most], radius, periodic), _cells(change[kept][:most])
    gram = design.T @ design
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    found = torch.cholesky_solve(design.T @ wanted, torch.linalg.cholesky(gram))
    test = ~kept if bool((~kept).any()) else kept
    design, wanted = _design(x[test][:most], radius, periodic), _cells(change[test][:most])
    return float((design @ found - wanted).square().mean())


def _design(x: Tensor, radius: int, periodic: Sequence[bool]) -> Tensor:
    """What lies around each cell, products of that, and a one: `(rows * cells, features)`, float64.

    Products of two numbers near by, as far as they are few, and of all with what lies in the cell itself.
    """
    around = neighbours(x, radius, periodic).flatten(0, -2).double()
    parts = [around, torch.ones_like(around[:, :1])]
    if around.shape[1] * x.shape[1] <= MOST_PAIRS:
        parts += [around * own[:, None] for own in _cells(x).T]
    for near in range(radius, 0, -1):
        size = x.shape[1] * (2 * near + 1) ** len(periodic)
        if size * (size + 1) // 2 <= MOST_PAIRS:
            close = neighbours(x, near, periodic).flatten(0, -2).double()
            first, second = torch.triu_indices(size, size)
            parts.append(close[:, first] * close[:, second])
            break
    return torch.cat(parts, dim=1)


def _cells(grid: Tensor) -> Tensor:
    return grid.movedim(1, -1).flatten(0, -2).double()
