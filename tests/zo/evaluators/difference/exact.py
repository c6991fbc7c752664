"""f(x + d) - f(x) in sixty digits: the truth for rules, element by element on arrays of mpmath numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor

mpmath.mp.dps = 60


def exact(tensor: Tensor) -> np.ndarray:
    """The same numbers, without rounding."""
    return np.vectorize(lambda value: mpmath.mpf(float(value)), otypes=[object])(tensor.numpy())


def elementwise(function: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    return np.vectorize(function, otypes=[object])


def rounded(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array).astype(np.float64))


def change(function: Callable[[np.ndarray], np.ndarray], x: Tensor, d: Tensor) -> Tensor:
    """For each variant of `d` (variants, *x.shape), in float64."""
    base = function(exact(x))
    return torch.stack([rounded(function(exact(x) + exact(one)) - base) for one in d])
