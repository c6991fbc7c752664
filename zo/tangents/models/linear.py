"""`LinearTangent`: one slope everywhere, a ridge regression of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zo.tangents.models.gaussian_process import Kept
from zo.tangents.models.kernel import KernelTangent

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # over the number of rows


@dataclass(frozen=True)
class LinearProcess(Kept):
    """A line for all outputs.

    Attributes:
        outputs: the places of the outputs, `(outputs,)`.
        slope: the slope, `(size, outputs)`.
        penalty: the penalty of squared slopes, over the number of rows.
        error: mean square error of rows left out, in units of one.
    """

    outputs: Tensor
    slope: Tensor
    penalty: float
    error: float

    @classmethod
    def fitted(cls, x: Tensor, wanted: Tensor) -> LinearProcess:
        """The one of the least leave-one-out error, of rows whose means are zero, `(rows, size)`."""
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        rotated = left.T @ wanted
        fits: list[tuple[float, float]] = []
        for penalty in PENALTIES:
            share = values.square() / (values.square() + penalty * len(x))
            complement = 1 - left.square() @ share - 1 / len(x)  # one less for the mean
            missed = (wanted - left @ (share[:, None] * rotated)) / complement.clamp_min(1e-9)[:, None]
            fits.append((float(missed.square().mean()), penalty))
        error, penalty = min(fits)
        inverse = values / (values.square() + penalty * len(x))
        outputs = torch.arange(wanted.shape[1], device=x.device)
        return cls(outputs, right.T @ (inverse[:, None] * rotated), penalty, error)

    @classmethod
    def means(cls, processes: Sequence[LinearProcess], centres: Tensor) -> list[LinearProcess]:
        """The lines, which need no centres."""
        return list(processes)

    def at(self, x: Tensor) -> Tensor:
        """The outputs: `(rows, size)` to `(rows, outputs)`."""
        return x @ self.slope

    def pulled(self, x: Tensor, v: Tensor) -> Tensor:
        """J^T v of each row: `(rows, outputs)` to `(rows, size)`."""
        return v @ self.slope.T


class LinearTangent(KernelTangent):
    """J is one matrix, that of a ridge regression of the last rows whose penalty leave-one-out errors choose.

    Args:
        centres: rows to which it is fitted, evenly taken from the window.
        window: rows kept, the oldest going.

    Raises:
        ConfigurationError: a value out of its range.
    """

    process = LinearProcess

    def fitted(self, x: Tensor, target: Tensor, again: bool) -> tuple[list[Any], bool]:
        """The line of all outputs."""
        return [LinearProcess.fitted(x, target)], True
