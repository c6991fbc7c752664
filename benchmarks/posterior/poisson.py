"""The Poisson problem of Aristoff and Bangerth: 64 logarithms of coefficients to 169 displacements.

D. Aristoff and W. Bangerth, "A benchmark for the Bayesian inversion of coefficients in partial differential
equations", SIAM Review 65 (2023), arXiv 2102.07263. A membrane, -div(a grad u) = 10 on the unit square with
u = 0 at its edge: a is constant on each of 8 x 8 blocks, u of bilinear elements. UM-Bridge serves the same
model as `models/dealii-laplace`.

The prior here is normal in the logarithms, about zero. The authors' code (deal.II's code gallery,
MCMC-Laplace) takes the same expression as a density of the coefficients themselves, which in logarithms is a
normal about 4: box and data are published, this posterior is not, and their means do not compare with ours.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.sparse import csr_matrix, lil_matrix
from torch import Tensor

BLOCKS = 8  # along a side
UNKNOWNS, POINTS = BLOCKS**2, 13  # logarithms; points of measurement along a side
CELLS = 32  # along a side, of the published box
NOISE, PRIOR = 0.05, 2.0  # standard deviations: of a measurement, and of each logarithm, whose mean is zero
LOAD = 10.0
STIFFNESS = np.array([[4, -1, -2, -1], [-1, 4, -1, -2], [-2, -1, 4, -1], [-1, -2, -1, 4]]) / 6  # of a square


class Solution(NamedTuple):
    """A solved problem: what is measured, and what its adjoint needs.

    Attributes:
        measured: displacements, `(169,)`.
        factor: Cholesky factor of the stiffness matrix, by its lower bands.
        inner: displacements of the inner nodes.
    """

    measured: np.ndarray
    factor: np.ndarray
    inner: np.ndarray


class Membrane:
    """The problem on a mesh of some cells along a side, with its adjoint.

    Args:
        cells: along a side, a multiple of 8; the published box has 32, a coarse twin 8 or 16.

    Raises:
        ValueError: another number of cells.
    """

    def __init__(self, cells: int = CELLS) -> None:
        if cells < BLOCKS or cells % BLOCKS:
            raise ValueError(f"Membrane: cells: expected a multiple of {BLOCKS}, got {cells}")
        self.cells = cells
        inner = np.full((cells + 1, cells + 1), -1)
        inner[1:-1, 1:-1] = np.arange((cells - 1) ** 2).reshape(cells - 1, cells - 1)
        rows, columns = np.divmod(np.arange(cells**2), cells)
        corners = [(rows, columns), (rows + 1, columns), (rows + 1, columns + 1), (rows, columns + 1)]
        nodes = np.stack([inner[corner] for corner in corners], 1)  # of each cell, -1 at the edge
        side = cells // BLOCKS
        block = np.broadcast_to((columns // side + rows // side * BLOCKS)[:, None, None], (cells**2, 4, 4))
        p, q = np.broadcast_arrays(nodes[:, :, None], nodes[:, None, :])
        lower = (p >= q) & (q >= 0)
        self._p, self._q, self._block = p[lower], q[lower], block[lower]
        self._value = np.broadcast_to(STIFFNESS, p.shape)[lower]
        self._size = (cells - 1) ** 2
        down = self._p - self._q
        self._bands = int(down.max()) + 1
        places = (self._value, (down * self._size + self._q, self._block))
        self._assemble = csr_matrix(places, shape=(self._bands * self._size, UNKNOWNS))
        self._load = np.full(self._size, LOAD / cells**2)
        self._measure = _measurement(inner, cells)

    def solve(self, logarithms: np.ndarray) -> Solution:
        """Solve for the displacements.

        Args:
            logarithms: of the coefficients, block by block, x first, `(64,)`.
        """
        bands = (self._assemble @ np.exp(logarithms)).reshape(self._bands, self._size)
        factor = cholesky_banded(bands, lower=True, check_finite=False)
        inner = cho_solve_banded((factor, True), self._load, check_finite=False)
        return Solution(self._measure @ inner, factor, inner)

    def __call__(self, logarithms: np.ndarray) -> np.ndarray:
        """The displacements of rows of logarithms: `(rows, 64)` to `(rows, 169)`."""
        return np.stack([self.solve(row).measured for row in np.asarray(logarithms, dtype=float)])

    def pulled(self, logarithms: np.ndarray, solution: Solution, v: np.ndarray) -> np.ndarray:
        """The adjoint's J^T v: `(169,)` to `(64,)`."""
        adjoint = cho_solve_banded((solution.factor, True), self._measure.T @ v, check_finite=False)
        p, q, inner = self._p, self._q, solution.inner
        both = np.where(p > q, adjoint[p] * inner[q] + adjoint[q] * inner[p], adjoint[p] * inner[q])
        return -np.exp(logarithms) * np.bincount(self._block, self._value * both, UNKNOWNS)

    def torch(self, logarithms: Tensor) -> Tensor:
        """The displacements as a function that autograd differentiates by the adjoint.

        Args:
            logarithms: `(..., 64)`; calculated in float64, returned in their type.

        Returns:
            `(..., 169)`.
        """
        measured: Tensor = _Solve.apply(logarithms, self)
        return measured


class _Solve(torch.autograd.Function):
    """The solve and its adjoint, row by row."""

    @staticmethod
    def forward(ctx: Any, logarithms: Tensor, membrane: Membrane) -> Tensor:
        """Keep each row's factor for the adjoint."""
        rows = logarithms.detach().double().reshape(-1, UNKNOWNS).numpy()
        ctx.solutions = [membrane.solve(row) for row in rows]
        ctx.rows, ctx.membrane = rows, membrane
        measured = np.stack([solution.measured for solution in ctx.solutions])
        return torch.from_numpy(measured).to(logarithms).reshape(*logarithms.shape[:-1], POINTS**2)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        """J^T v of each row."""
        by_row = v.double().reshape(-1, POINTS**2).numpy()
        triples = zip(ctx.rows, ctx.solutions, by_row, strict=True)
        pulled = np.stack([ctx.membrane.pulled(*triple) for triple in triples])
        return torch.from_numpy(pulled).to(v).reshape(*v.shape[:-1], UNKNOWNS), None


def _measurement(inner: np.ndarray, cells: int) -> csr_matrix:
    """Bilinear interpolation of inner nodes at the 13 x 13 points, y running first."""
    points = np.arange(1, POINTS + 1) / (POINTS + 1) * cells
    matrix = lil_matrix((POINTS**2, (cells - 1) ** 2))
    for a, y in enumerate(points):
        for b, x in enumerate(points):
            for j in (int(y), int(y) + 1):
                for i in (int(x), int(x) + 1):
                    if inner[j, i] >= 0:
                        matrix[b * POINTS + a, inner[j, i]] = (1 - abs(y - j)) * (1 - abs(x - i))
    return csr_matrix(matrix)


@lru_cache
def measurements() -> Tensor:
    """The published data, displacements `(169,)` in float64, y running first."""
    return torch.from_numpy(np.loadtxt(Path(__file__).with_name("poisson.txt")))


def potential(logarithms: Tensor, displacements: Tensor) -> Tensor:
    """The negative logarithm of the posterior's density, but for a constant.

    Args:
        logarithms: `(..., 64)`.
        displacements: the box's answer to them, `(..., 169)`.

    Returns:
        `(...)`.
    """
    missed = (displacements - measurements().to(displacements)) / NOISE
    return (missed.square().sum(-1) + (logarithms / PRIOR).square().sum(-1)) / 2
