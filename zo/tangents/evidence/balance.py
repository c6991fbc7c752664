"""The missing share of a gradient that autograd saw only in part, by two queries."""

from __future__ import annotations

from zo.tangents.trust.evidence import MISSING, is_uneven

NEARER = 10.0  # so many times shorter is the way on which a fault is looked at again; decision 109


def missing(balance: float | None, nearer: float | None) -> float | None:
    """Return how many times its length the gradient lacks, along itself, by two queries; None for nothing.

    A balance is the change of the loss, with the boxes' own responses in the place of the tangents', over
    what autograd says: 1, but for curvature, which a way ten times shorter has ten times less of, and for
    what autograd never saw. That is the same over both.

    Args:
        balance: over the usual way.
        nearer: over a tenth of it.
    """
    if balance is None or nearer is None:
        return None
    remainder = (NEARER * (nearer - 1.0) - (balance - 1.0)) / (NEARER - 1.0)
    stays = abs(remainder - (nearer - 1.0)) <= abs(nearer - 1.0) / 2
    return remainder if stays and abs(remainder) > MISSING else None


def of_slope(uphill: float | None, downhill: float | None) -> float | None:
    """Return how many times its length the gradient lacks, along itself, by its two sides; None for nothing.

    What was cut is missing on both sides alike. At a kink or in a narrow valley the loss rises on both, and
    what the sides have in common is the gradient.

    Args:
        uphill: the balance over a way in the direction of the gradient.
        downhill: the balance over as long a way in the other.
    """
    if uphill is None or downhill is None:
        return None
    remainder = (uphill + downhill) / 2 - 1.0
    return remainder if abs(remainder) > MISSING and is_uneven(uphill) and is_uneven(downhill) else None
