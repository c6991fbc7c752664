"""Gaussian processes of a squared exponential kernel beside a linear trend: fits, lengths, errors left out.

Covariances are exp(-sum over inputs i of (x_i - x'_i)^2 / 2 l_i^2) + 10 (1 + x . x' / n) for n numbers of
inputs, in units of spread one (Rasmussen and Williams, *Gaussian Processes for Machine Learning*, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the kernel, over the usual distance of two rows
NOISES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)  # variances, over the kernel's own
TREND = 10.0  # variance of the linear part, over the kernel's own; decision 77
# of the search for lengths, decision 148:
ROWS = 128  # whose likelihood it is
STEPS = 40  # at most
DEVIATION = 2.0  # of the prior of a length's logarithm, about that of one length for all
UNCHANGED = 1e-3  # spread of an output, in units of one, below which it says nothing of lengths


@dataclass(frozen=True)
class Process:
    """The mean of a process for some outputs, given some rows.

    Attributes:
        outputs: their places, `(outputs,)`.
        lengths: of the kernel, `(size,)`.
        noise: its variance, over the kernel's own.
        centres: the rows, `(centres, size)`, over the lengths.
        weights: of each, `(centres, outputs)`.
        slope: of the trend, `(size, outputs)`.
        offset: of the trend, `(outputs,)`.
    """

    outputs: Tensor
    lengths: Tensor
    noise: float
    centres: Tensor
    weights: Tensor
    slope: Tensor
    offset: Tensor

    @classmethod
    def fitted(cls, x: Tensor, wanted: Tensor, outputs: Tensor, lengths: Tensor, noise: float) -> Process:
        """The one for some outputs: `(rows, size)` and all that is wanted there, `(rows, all outputs)`."""
        centres = x / lengths
        kernel = _near(centres, centres) + trend(x, x)
        kernel.diagonal().add_(noise)
        weights = torch.cholesky_solve(wanted[:, outputs], torch.linalg.cholesky(kernel)).contiguous()
        slope, offset = (TREND / x.shape[1]) * (x.T @ weights), TREND * weights.sum(0)
        return cls(outputs, lengths, noise, centres, weights, slope, offset)

    def mean(self, x: Tensor) -> Tensor:
        """The outputs: `(rows, size)` to `(rows, outputs)`."""
        return _near(x / self.lengths, self.centres) @ self.weights + x @ self.slope + self.offset

    def pulled(self, x: Tensor, v: Tensor) -> Tensor:
        """The mean's J^T v of each row: `(rows, outputs)` to `(rows, size)`."""
        scaled = x / self.lengths
        pull = _near(scaled, self.centres) * (v @ self.weights.T)
        return v @ self.slope.T + (pull @ self.centres - scaled * pull.sum(1, keepdim=True)) / self.lengths

    def state(self) -> list[Any]:
        """Its attributes, in their order."""
        return [
            value.clone() if isinstance(value, Tensor) else value
            for value in (getattr(self, name) for name in self.__dataclass_fields__)
        ]

    @classmethod
    def of(cls, state: Sequence[Any], device: torch.device) -> Process:
        """The one whose `state` it was."""
        values: list[Any] = [v.to(device, copy=True) if isinstance(v, Tensor) else v for v in state]
        return cls(*values)


def leave_one_out(x: Tensor, wanted: Tensor) -> tuple[float, float, float] | None:
    """The smallest mean square error of a row that the others predict, with one length and a noise.

    Args:
        x: inputs in units of spread one, `(rows, size)`.
        wanted: what is predicted, `(rows, size_out)`.

    Returns:
        The error, the kernel's length and the noise; None where no error is finite.
    """
    usual = float(squares(x, x).mean().sqrt()) or 1.0
    least = least_left_out(x, wanted, usual, LENGTHS)
    return None if least is None else (float(least[0].mean()), least[1] * usual, least[2])


def least_left_out(
    x: Tensor, wanted: Tensor, lengths: Tensor | float, factors: Sequence[float]
) -> tuple[Tensor, float, float] | None:
    """The least errors of rows that the others predict, in closed form, for all noises at once.

    Args:
        x: inputs in units of spread one, `(rows, size)`.
        wanted: what is predicted, `(rows, size_out)`.
        lengths: of the kernel, one or `(size,)`.
        factors: on them, of which the best is taken.

    Returns:
        Mean square errors `(size_out,)`, the factor and the noise; None where no error is finite.
    """
    distances, linear, least = squares(x / lengths, x / lengths), trend(x, x), None
    for factor in factors:
        values, vectors = torch.linalg.eigh(torch.exp(-distances / (2 * factor**2)) + linear)
        rotation = vectors.T @ wanted
        for noise in NOISES:
            inverse = 1 / (values.clamp_min(0) + noise)
            errors = (vectors @ (inverse[:, None] * rotation)) / (vectors.square() @ inverse)[:, None]
            by_output = errors.square().mean(0)
            if float(by_output.mean()) < (math.inf if least is None else float(least[0].mean())):
                least = by_output, factor, noise
    return least


def leave_out(groups: Sequence[Tensor], x: Tensor, wanted: Tensor, length: float, noise: float) -> float:
    """The mean square error of rows that are predicted without all of their group, in closed form.

    Args:
        groups: places of rows, each row in one group.
        x: inputs in units of spread one, `(rows, size)`.
        wanted: what is predicted, `(rows, size_out)`.
        length: the kernel's.
        noise: its variance.
    """
    kernel = _near(x / length, x / length) + trend(x, x)
    kernel.diagonal().add_(noise)
    inverse = torch.linalg.inv(kernel)
    weights = inverse @ wanted
    errors = [torch.linalg.solve(inverse[rows[:, None], rows], weights[rows]) for rows in groups]
    return float(torch.cat(errors).square().mean())


def likely_lengths(x: Tensor, wanted: Tensor, length: float, noise: float) -> Tensor:
    """A length for each input, of the largest marginal likelihood times a prior about one length for all.

    The outputs share lengths and noise, and each has its own variance, at its likeliest. An input that the
    outputs do not depend on, or depend on linearly, gets a long one ("automatic relevance determination").

    Args:
        x: inputs in units of spread one, `(rows, size)`; of more than 128 rows so many are taken.
        wanted: outputs in such units, `(rows, size_out)`; one that never changes is left out.
        length: from which the search begins.
        noise: the same.

    Returns:
        Lengths `(size,)`.
    """
    places = torch.linspace(0, len(x) - 1, min(len(x), ROWS)).round().long().to(x.device)
    x_cpu, y = x[places].cpu(), wanted[places].cpu()
    y = y[:, y.square().mean(0).sqrt() > UNCHANGED]
    size, usual = x.shape[1], math.log(length)
    if not y.shape[1]:
        return x.new_full((size,), length)

    def loss(logarithms: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = unlikeliness(x_cpu, y, torch.from_numpy(logarithms))
        off = (logarithms[:size] - usual) / DEVIATION
        gradient = slope.numpy()
        gradient[:size] += off / DEVIATION
        return value + float(off @ off) / 2, gradient

    begin = np.append(np.full(size, usual), math.log(noise))
    bounds = [(usual - 3 * DEVIATION, usual + 3 * DEVIATION)] * size + [
        (math.log(NOISES[0]), math.log(NOISES[-1]))
    ]
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS})
    return torch.from_numpy(found.x[:size]).exp().to(x)


def unlikeliness(x: Tensor, y: Tensor, logarithms: Tensor) -> tuple[float, Tensor]:
    """The negative logarithm of the marginal likelihood, but for a constant, and its gradient.

    Args:
        x: inputs, `(rows, size)`.
        y: outputs, `(rows, size_out)`.
        logarithms: of lengths and of the noise, `(size + 1,)`.

    Returns:
        The value, infinite where the covariance is singular to rounding, and its gradient by `logarithms`.
    """
    rows, outputs = y.shape
    scaled, noise = x / logarithms[:-1].exp(), float(logarithms[-1].exp())
    near = _near(scaled, scaled)
    kernel = near + trend(x, x)
    kernel.diagonal().add_(noise)
    root, wrong = torch.linalg.cholesky_ex(kernel)
    if int(wrong):
        return math.inf, torch.zeros_like(logarithms)
    weights = torch.cholesky_solve(y, root)
    variances = (y * weights).mean(0)  # the likeliest
    value = outputs * root.diagonal().log().sum() + rows / 2 * variances.log().sum()
    pull = outputs * torch.cholesky_inverse(root) - (weights / variances) @ weights.T
    by_noise = noise / 2 * pull.diagonal().sum()
    pull = pull * near
    by_lengths = pull.sum(0) @ scaled.square() - (scaled * (pull @ scaled)).sum(0)
    return float(value), torch.cat([by_lengths, by_noise[None]])


def trend(a: Tensor, b: Tensor) -> Tensor:
    """Covariances of the linear part, `(rows of a, rows of b)`."""
    return TREND * (1 + a @ b.T / a.shape[1])


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows, `(rows of a, rows of b)`."""
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Covariances of the kernel of rows over its lengths, `(rows of a, rows of b)`."""
    return torch.exp(-squares(a, b) / 2)
