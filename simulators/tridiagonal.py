"""Symmetric tridiagonal systems, many at once, by parallel cyclic reduction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def solve_tridiagonal(diagonal: Tensor, beside: Tensor, right: Tensor) -> Tensor:
    """Find x with `beside[i-1] x[i-1] + diagonal[i] x[i] + beside[i] x[i+1] = right[i]`.

    Each round takes the unknowns at a distance out of every equation and doubles the distance (Hockney &
    Jesshope 1981), so n unknowns take log2(n) rounds of whole-array operations instead of n of single ones.
    There is no pivoting: the matrices must be diagonally dominant, then it is as stable as elimination.

    Args:
        diagonal: `(..., n)`.
        beside: `(..., n - 1)`, the two diagonals next to it.
        right: `(..., n)`.

    Returns:
        `(..., n)`.
    """
    size = diagonal.shape[-1]
    lower, upper = F.pad(beside, (1, 0)), F.pad(beside, (0, 1))
    distance = 1
    while distance < size:
        before, after = (distance, 0), (0, distance)
        from_before = -lower / F.pad(diagonal[..., :-distance], before, value=1.0)
        from_after = -upper / F.pad(diagonal[..., distance:], after, value=1.0)
        diagonal = (
            diagonal
            + from_before * F.pad(upper[..., :-distance], before)
            + from_after * F.pad(lower[..., distance:], after)
        )
        right = (
            right
            + from_before * F.pad(right[..., :-distance], before)
            + from_after * F.pad(right[..., distance:], after)
        )
        lower = from_before * F.pad(lower[..., :-distance], before)
        upper = from_after * F.pad(upper[..., distance:], after)
        distance *= 2
    return right / diagonal
