"""The pressure solve: a direct one for many rows at once, from two small eigenbases and the cut links.

The discrete Laplace operator of the *empty* channel is a sum of one operator across and one along,
so it is diagonal in the product of their eigenvectors: two small matrix products an axis (fast
diagonalisation, Lynch, Rice & Thomas 1964). Obstacles only cut links between neighbouring
cells. Cutting k links is a change of rank k, which the Woodbury identity turns into one more product
with a (k, cells) matrix, the capacitance matrix method (Buzbee, Dorr, George & Golub 1971).

    A = A0 + W W^T / h^2,   A^-1 = A0^-1 - A0^-1 W (h^2 + W^T A0^-1 W)^-1 W^T A0^-1,

each column of W is e_a - e_b for a cut link (a, b). One link between each solid body and the fluid stays:
the cells inside have no divergence, so nothing flows through a single link and the fluid does not
feel it, while without any the operator would be singular.

Work per row is 4 cells (height + width) + 2 k cells multiplications and additions; k is about 8 radius / cell
for a cylinder (26 for the published one on 32 x 64). Against PhiFlow's own matrix the residual is
checked once, in float64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from phi import math
from phi.math import NUMPY
from phi.physics import fluid
from scipy import ndimage
from torch import Tensor

from simulators.errors import OperatorMismatchError
from simulators.wake_flow.geometry import ALONE, Channel

TOLERANCE = 1e-9  # residual relative to the right side; float64 reaches about 1e-13


class Tables(NamedTuple):
    """What a solve needs, in one dtype and on one device."""

    across: Tensor  # (width, width), eigenvectors in columns
    along: Tensor  # (height, height), likewise
    inverse: Tensor  # (height, width), 1 / eigenvalue
    ends: Tensor  # (2, links), flat indices of the cells that a cut link joined
    correction: Tensor  # (links, cells)


@lru_cache(maxsize=8)
def laplace_matrix(channel: Channel) -> sp.csr_matrix:
    """PhiFlow's masked Laplace operator, `(cells, cells)`, cells counted row by row along the stream.

    Inside obstacles its rows are the identity's. It is made once in a process for equal channels.
    """
    passable, active = channel.masks.fields
    with ALONE, NUMPY, math.precision(64):
        arguments = (channel.pressure_grid(), channel.boundary, passable, active)
        matrix, _ = math.matrix_from_function(fluid.masked_laplace, *arguments, wide_stencil=False)
    # PhiFlow counts cells with y innermost.
    order = np.arange(channel.width * channel.height).reshape(channel.width, channel.height).T.ravel()
    links = sp.coo_matrix(sp.csr_matrix(matrix.numpy(), dtype=np.float64)[order][:, order])
    # It also rounds 1 / cell^2 to float32 on the way; in the fluid, entries are whole multiples of it.
    fluid_rows = channel.masks.active.ravel()[links.row] > 0
    multiples = links.data * channel.cell**2
    whole = np.rint(multiples)
    if not np.allclose(multiples[fluid_rows], whole[fluid_rows], rtol=0, atol=1e-5):
        raise OperatorMismatchError(
            f"laplace_matrix({channel}): expected whole multiples of 1 / cell^2, as second differences "
            f"have, got {np.unique(multiples[fluid_rows])} of it. Use the pinned version of PhiFlow (3.4)."
        )
    links.data = np.where(fluid_rows, whole / channel.cell**2, links.data)
    return sp.csr_matrix(links)


class PressureSolver:
    """Solve PhiFlow's pressure equation of one channel for any number of rows.

    Args:
        channel: the geometry.

    Raises:
        OperatorMismatchError: PhiFlow's operator is another than the one assumed here.
    """

    def __init__(self, channel: Channel) -> None:
        """Build the tables in float64 and check them against PhiFlow's matrix."""
        self.channel = channel
        self._tables: dict[tuple[torch.dtype, torch.device], Tables] = {}
        with torch.inference_mode(False):  # else no later gradient could go through
            self._tables[torch.float64, torch.device("cpu")] = _build(channel)
        self._check()

    def __call__(self, divergence: Tensor) -> Tensor:
        """Pressure (times the time step) whose masked Laplacian is `divergence`.

        Differentiable; each row of the result depends on its own row alone.

        Args:
            divergence: `(rows, height, width)`, per unit of time, zero inside obstacles.

        Returns:
            `(rows, height, width)`, in the dtype and on the device of `divergence`. Inside
            obstacles the values mean nothing.
        """
        t = self.tables(divergence.dtype, divergence.device)
        spectral = torch.matmul(t.along.T, divergence @ t.across) * t.inverse
        empty = (torch.matmul(t.along, spectral) @ t.across.T).flatten(1)
        jumps = empty[:, t.ends[0]] - empty[:, t.ends[1]]
        return torch.addmm(empty, jumps, t.correction, alpha=-1).view(divergence.shape)

    def tables(self, dtype: torch.dtype, device: torch.device) -> Tables:
        """The tables in `dtype` on `device`, rounded once from float64."""
        key = dtype, device
        if key not in self._tables:
            exact = self._tables[torch.float64, torch.device("cpu")]
            with torch.inference_mode(False):  # else no later gradient could go through
                self._tables[key] = Tables(
                    *(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in exact)
                )
        return self._tables[key]

    def _check(self) -> None:
        active = self.channel.masks.active
        # A right side with all wave numbers, fixed so that building twice does the same.
        right = np.random.default_rng(0).standard_normal(active.shape) * active
        with torch.no_grad():
            pressure = self(torch.from_numpy(right)[None])[0].numpy() * active
        residual = np.abs(laplace_matrix(self.channel) @ pressure.ravel() - right.ravel()).max()
        if not residual <= TOLERANCE * np.abs(right).max():
            raise OperatorMismatchError(
                f"PressureSolver({self.channel}): expected to invert PhiFlow's masked Laplace operator, "
                f"got a residual of {residual:.1e} on a right side of {np.abs(right).max():.1f}. "
                "PhiFlow's boundaries or masks changed: use the pinned version (3.4)."
            )


def _build(channel: Channel) -> Tables:
    height, width = channel.height, channel.width
    across_values, across = np.linalg.eigh(_second_difference(width, channel.cell, open_end=False))
    along_values, along = np.linalg.eigh(_second_difference(height, channel.cell, open_end=True))
    inverse = 1 / (along_values[:, None] + across_values[None, :])

    ends = _cut_links(channel)
    links = np.arange(ends.shape[1])
    cut = np.zeros((len(links), height * width))
    cut[links, ends[0]], cut[links, ends[1]] = 1.0, -1.0
    spectral = along.T @ cut.reshape(-1, height, width) @ across * inverse
    response = (along @ spectral @ across.T).reshape(len(links), height * width)  # A0^-1 W, transposed
    capacitance = channel.cell**2 * np.eye(len(links)) + response[:, ends[0]] - response[:, ends[1]]
    correction = np.linalg.solve(capacitance, response)
    arrays = (across, along, inverse, ends, correction)
    return Tables(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


def _second_difference(cells: int, cell: float, *, open_end: bool) -> np.ndarray:
    """Second difference in one direction: closed ends, or zero pressure one cell beyond the last."""
    matrix = np.diag(np.full(cells, -2.0)) + np.eye(cells, k=1) + np.eye(cells, k=-1)
    matrix[0, 0] = -1.0
    matrix[-1, -1] = -2.0 if open_end else -1.0
    return matrix / cell**2


def _cut_links(channel: Channel) -> np.ndarray:
    """Flat indices `(2, links)` of neighbours with a body's edge between them, but for one pair a body."""
    active = channel.masks.active > 0
    cells = np.arange(active.size).reshape(active.shape)
    beside = active[:, :-1] != active[:, 1:]
    above = active[:-1] != active[1:]
    ends = np.stack(
        [
            np.concatenate([cells[:, :-1][beside], cells[:-1][above]]),
            np.concatenate([cells[:, 1:][beside], cells[1:][above]]),
        ]
    )
    # Cells that share a side belong to one body; the fluid's label is 0, so the larger one is the body's.
    bodies: Any = ndimage.label(~active)[0]  # type: ignore[index] (SciPy's stub)
    _, first = np.unique(bodies.ravel()[ends].max(0), return_index=True)
    return np.delete(ends, first, axis=1)
