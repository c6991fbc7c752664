"""`Formula`: a box in NumPy whose formulas are written once, for NumPy and for PyTorch."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox import BlackBoxFunction


class Formula(BlackBoxFunction, abstract=True):
    """A box that NumPy computes in float64, with a twin in PyTorch that has a derivative."""

    arrays = "numpy"

    def __init__(self) -> None:
        super().__init__(failures="keep")

    @abstractmethod
    def law(self, *arrays: Any) -> Any:
        """What a call computes, from NumPy arrays or from tensors, rows first: one array, or a tuple."""

    def evaluate_rows(self, *arrays: Any) -> Any:
        """All rows, in NumPy."""
        return self.law(*(np.asarray(array, dtype=np.float64) for array in arrays))

    def advance(self, *tensors: Tensor) -> Any:
        """The same in PyTorch, by autograd differentiable."""
        found, dtype = self.law(*(tensor.double() for tensor in tensors)), tensors[0].dtype
        return tuple(each.to(dtype) for each in found) if isinstance(found, tuple) else found.to(dtype)


def library(array: Any) -> Any:
    """The package whose functions take that array: NumPy or PyTorch."""
    return torch if isinstance(array, Tensor) else np
