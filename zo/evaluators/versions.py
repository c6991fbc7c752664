"""Versions of weights: different in every query, so what a forward keeps by them is used in that query alone.

A forward may keep what it computes from a weight for as long as the weight's `_version` stays. Queries write
to `.data`, which leaves the version as it is, and put the weight back to the bit. So in a query each weight
that is moved has a version that nothing else has, and behind it the one from before: what was kept of it
holds again, and so does a graph of autograd that was made before the step.
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

_FAR = 2**31  # of the 32 bits that there are: no optimizer writes to a weight as often
_fresh = count(step=2**10)  # a forward may write to the weight, too


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None for an inference tensor, which does not count it."""
    return None if tensor.is_inference() else tensor._version


def renew(tensor: Tensor) -> None:
    """Give a tensor whose `.data` was written to a version that none has had."""
    put_version(tensor, _FAR + next(_fresh) % _FAR)


def put_version(tensor: Tensor, version: int | None) -> None:
    """Give a tensor that is as it was the version that it had; nothing where that is None."""
    if version is None or tensor.is_inference():
        return
    put = torch._C._autograd._unsafe_set_version_counter  # pyright: ignore[reportAttributeAccessIssue]
    try:
        put((tensor,), (version,))
    except TypeError:  # of torch versions that take one tensor
        put(tensor, version)
