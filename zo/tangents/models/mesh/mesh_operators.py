"""First-order (P1) finite elements of a mesh: mass, stiffness and convection as sparse matrices."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import chebyshev
from scipy import sparse

from blackbox import Mesh

Matrix = sparse.csr_array


@dataclass(frozen=True)
class Elements:
    """The cells of a mesh with what P1 functions are on them; lengths are in units of the mesh's own extent.

    Attributes:
        nodes: their number.
        cells: `(cells, corners)` nodes.
        volume: `(cells,)`, the area of triangles, the volume of tetrahedra.
        slopes: `(cells, corners, dimensions)`, the gradients of the corners' hat functions.
        middle: `(cells, dimensions)`, the cells' centres from -1 to 1 along each axis.
    """

    nodes: int
    cells: np.ndarray
    volume: np.ndarray
    slopes: np.ndarray
    middle: np.ndarray

    @classmethod
    def of(cls, mesh: Mesh) -> Elements:
        """The elements of a mesh that has cells and coordinates."""
        assert mesh.cells is not None and mesh.coordinates is not None and mesh.size is not None
        low, high = mesh.coordinates.min(axis=0), mesh.coordinates.max(axis=0)
        extent = float((high - low).max()) or 1.0
        places = (mesh.coordinates - (low + high) / 2) / extent
        corners = places[mesh.cells]  # (cells, corners, dimensions)
        sides = corners[:, 1:] - corners[:, :1]
        gram = sides @ sides.swapaxes(1, 2)
        volume = np.sqrt(np.abs(np.linalg.det(gram))) / math.factorial(sides.shape[1])
        alive = volume > 1e-12 * volume.max()  # a cell without area has no gradient
        sides, volume, corners = sides[alive], volume[alive], corners[alive]
        last = np.linalg.pinv(sides).swapaxes(1, 2)
        slopes = np.concatenate([-last.sum(axis=1, keepdims=True), last], axis=1)
        reach = np.maximum((high - low) / (2 * extent), 1e-9)
        return cls(mesh.size, mesh.cells[alive], volume, slopes, corners.mean(axis=1) / reach)

    @property
    def dimensions(self) -> int:
        """The dimensions of the space that the mesh lies in."""
        return self.slopes.shape[2]

    def mass(self, weight: np.ndarray | None = None) -> Matrix:
        """The integral of weight x hat x hat; the weight is one number for each cell."""
        corners = self.cells.shape[1]
        local = (np.ones((corners, corners)) + np.eye(corners)) / (corners * (corners + 1))
        return self._assembled((self.volume * _ones(weight, self.volume))[:, None, None] * local)

    def lumped(self) -> Matrix:
        """The mass matrix with the sums of its rows on the diagonal."""
        return sparse.diags_array(np.maximum(self.mass().sum(axis=1), 1e-300)).tocsr()

    def stiffness(self, a: int, b: int, weight: np.ndarray | None = None) -> Matrix:
        """The integral of weight x d(hat)/da x d(hat)/db."""
        local = self.slopes[:, :, None, a] * self.slopes[:, None, :, b]
        return self._assembled((self.volume * _ones(weight, self.volume))[:, None, None] * local)

    def convection(self, a: int, weight: np.ndarray | None = None) -> Matrix:
        """The integral of weight x hat x d(hat)/da: what is carried along axis a."""
        corners = self.cells.shape[1]
        local = np.repeat(self.slopes[:, None, :, a] / corners, corners, axis=1)
        return self._assembled((self.volume * _ones(weight, self.volume))[:, None, None] * local)

    def operator(self, tensor: np.ndarray, velocity: np.ndarray, reaction: np.ndarray) -> Matrix:
        """Stiffness, convection and mass in one, with coefficients for each cell.

        Args:
            tensor: the coefficients of the stiffness, `(cells, dimensions, dimensions)`.
            velocity: the velocity of the convection, `(cells, dimensions)`.
            reaction: the coefficients of the mass, `(cells,)`.
        """
        corners = self.cells.shape[1]
        local = self.slopes @ tensor @ self.slopes.swapaxes(1, 2)
        local += (self.slopes @ velocity[:, :, None]).swapaxes(1, 2) / corners
        shape = (np.ones((corners, corners)) + np.eye(corners)) / (corners * (corners + 1))
        local += reaction[:, None, None] * shape
        return self._assembled(self.volume[:, None, None] * local)

    def boundary(self) -> Matrix:
        """The lumped mass of the sides that belong to one cell alone, for losses through the boundary."""
        corners = self.cells.shape[1]
        sides = np.concatenate(
            [self.cells[:, list(side)] for side in itertools.combinations(range(corners), corners - 1)]
        )
        volume = np.tile(self.volume, corners)
        sides = np.sort(sides, axis=1)
        _, first, counts = np.unique(sides, axis=0, return_index=True, return_counts=True)
        alone = first[counts == 1]
        # A side's size, up to a factor that the fit finds: of cells of one shape, volume^((d-1)/d).
        size = volume[alone] ** ((corners - 2) / (corners - 1))
        total = np.zeros(self.nodes)
        np.add.at(total, sides[alone].ravel(), np.repeat(size / (corners - 1), corners - 1))
        return sparse.diags_array(total).tocsr()

    def slope(self, a: int) -> Matrix:
        """The matrix from nodes to cells that takes the derivative along axis a."""
        return self._to_cells(self.slopes[:, :, a])

    def average(self) -> Matrix:
        """The matrix from nodes to cells that takes the mean of the corners."""
        corners = self.cells.shape[1]
        return self._to_cells(np.full(self.cells.shape, 1 / corners))

    def polynomials(self, degree: int) -> list[np.ndarray]:
        """Products of Chebyshev polynomials of the cells' centres up to a degree, the constant first."""
        axes = [chebyshev.chebvander(np.clip(x, -1, 1), degree) for x in self.middle.T]
        powers = itertools.product(range(degree + 1), repeat=len(axes))
        choice = sorted((exponents for exponents in powers if sum(exponents) <= degree), key=sum)
        return [
            np.prod([axis[:, n] for axis, n in zip(axes, exponents, strict=True)], axis=0)
            for exponents in choice
        ]

    @cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pattern of all matrices: where rows begin, columns, and the place of each cell's numbers."""
        corners = self.cells.shape[1]
        rows = np.repeat(self.cells, corners, axis=1).ravel()
        columns = np.tile(self.cells, (1, corners)).ravel()
        places, number = np.unique(rows.astype(np.int64) * self.nodes + columns, return_inverse=True)
        begins = np.searchsorted(places, self.nodes * np.arange(self.nodes + 1))
        return begins.astype(np.int32), (places % self.nodes).astype(np.int32), number.ravel()

    def _assembled(self, local: np.ndarray) -> Matrix:
        begins, columns, number = self._pattern
        values = np.bincount(number, local.ravel(), len(columns))
        return sparse.csr_array((values, columns, begins), shape=(self.nodes, self.nodes))

    def _to_cells(self, local: np.ndarray) -> Matrix:
        rows = np.repeat(np.arange(len(self.cells)), self.cells.shape[1])
        shape = (len(self.cells), self.nodes)
        return sparse.coo_array((local.ravel(), (rows, self.cells.ravel())), shape=shape).tocsr()


def incidence(links: np.ndarray, nodes: int) -> Matrix:
    """The matrix from nodes to edges that takes the difference of the two ends, `(edges, nodes)`."""
    rows = np.repeat(np.arange(len(links)), 2)
    values = np.tile([1.0, -1.0], len(links))
    return sparse.coo_array((values, (rows, links.ravel())), shape=(len(links), nodes)).tocsr()


def _ones(weight: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    return np.ones_like(like) if weight is None else weight
