"""The form of a dithered input's gain: the columns of the regression of an answer.

An answer changes by A e + sum_j x_j B_j e with a dither e, where x are the box's other inputs. A valve's
effect depends on the difference of two temperatures, a viscosity's on a curvature, a thickness's on the load,
and the means of these may be zero. For fields, A is one kernel around all cells, and products are those of
neighbours.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zo.tangents.excitation.identified import grid_of
from zo.tangents.record.pairs import CallPairs, sizes

# decision 136, the first two:
NEAR = {1: 8, 2: 3, 3: 1}  # cells from a dithered one whose answers are regressed, by the grid's axes
MOST, MOST_NEAR = 64, 400  # numbers that an output is regressed on; of a cell on a grid, and of products
MOST_COLUMNS = 2**25  # numbers of them in a row of the batch, on a grid; decision 137


@dataclass(frozen=True)
class GainForm:
    """The form of the gain of a box's dithered inputs.

    Attributes:
        numbers: which of a row's differentiable inputs are dithered, `(n,)`.
        factors: the places in `given` of the factors of products, `(m,)`.
        names: the names of the dithered inputs.
        space: the axes of the grid that all of them are on; empty for none.
        wraps: for each axis whether its ends meet.
    """

    numbers: Tensor
    factors: Tensor
    names: tuple[str, ...]
    space: tuple[int, ...]
    wraps: tuple[bool, ...]

    @classmethod
    def of(cls, rows: CallPairs, dither: Tensor) -> GainForm | None:
        """Return the form for a call; None where numbers are too many, and on no grid."""
        parts = [part.any(dim=0) for part in dither.split(sizes(rows.inputs), dim=1)]
        dithers = [spec for spec, part in zip(rows.inputs, parts, strict=True) if bool(part.any())]
        space, wraps = grid_of([*dithers, *rows.outputs])
        shapes = [spec.shape for spec in rows.inputs] + [tuple(part.shape[1:]) for part in _others(rows)]
        if space:  # all cells of what is dithered in some
            parts = [torch.full_like(part, bool(part.any())) for part in parts]
        factor_parts = [parts[0].new_full((math.prod(shape),), _is_on(shape, space)) for shape in shapes]
        numbers, factors = (torch.cat(masks).nonzero().flatten() for masks in (parts, factor_parts))
        form = cls(numbers, factors, tuple(spec.name for spec in dithers), space, wraps)
        if not 0 < form.alone <= (MOST_NEAR if space else MOST):
            return None
        columns = math.prod(space) * (form.alone + form.products)
        if form.products > MOST_NEAR or columns > MOST_COLUMNS:
            return cls(numbers, factors[:0], form.names, space, wraps)
        return form

    @property
    def alone(self) -> int:
        """Numbers of the kernel, for each output or each channel of a grid, of the dither alone."""
        around = (2 * NEAR[len(self.space)] + 1) ** len(self.space) if self.space else 1
        return around * self._channels(self.numbers)

    @property
    def products(self) -> int:
        """The same of products."""
        around = (1 + 2 * len(self.space)) ** 2
        return around * self._channels(self.numbers) * self._channels(self.factors)

    @property
    def key(self) -> tuple[Any, ...]:
        """The key of a form; sums of forms with one key can be added up."""
        return self.names, self.space, len(self.factors), () if self.space else tuple(self.numbers.tolist())

    def columns(self, dither: Tensor, beside: Tensor) -> Tensor:
        """Return the columns to multiply by the kernel, `(rows, cells, n)`; without a grid there is one cell.

        Args:
            dither: `(rows, size_in)`.
            beside: `(rows, m, cells)`, what the products are with, as `beside` has it.
        """
        if self.space:
            field, axes = self._padded(dither[:, self.numbers], NEAR[len(self.space)]), len(self.space)
            for axis in range(2, 2 + axes):
                field = field.unfold(axis, 2 * NEAR[axes] + 1, 1)
            field = field.movedim(1, 1 + axes)  # channels, beside the places around a cell
            alone = field.flatten(1 + axes).flatten(1, axes)
        else:
            alone = dither[:, None, self.numbers]
        one = self._neighbours(dither, self.numbers)
        products = (one[:, :, None] * beside[:, None]).flatten(1, 2).transpose(1, 2)
        return torch.cat([alone, products], dim=2)

    def answered(self, dither: Tensor, beside: Tensor, kernel: Tensor) -> Tensor:
        """The product of columns and kernel, `(rows, size_out)`.

        Args:
            dither: `(rows, size_in)`.
            beside: `(rows, m, cells)`, what the products are with.
            kernel: `(channels, n)`.
        """
        alone, products = kernel.split([self.alone, self.products], dim=1)
        answer = self.around(dither, alone)
        if self.products:
            one = self._neighbours(dither, self.numbers)
            gains = torch.einsum("cab,rbn->rcan", products.view(len(kernel), one.shape[1], -1), beside)
            answer = answer + torch.einsum("rcan,ran->rcn", gains, one).flatten(1)
        return answer

    def around(self, dither: Tensor, kernel: Tensor) -> Tensor:
        """The part of the dither alone, `(rows, size_out)`: `(rows, size_in)` and `(channels, n)`."""
        if not self.space:
            return dither[:, self.numbers] @ kernel.T
        near = NEAR[len(self.space)]
        convolution = (F.conv1d, F.conv2d, F.conv3d)[len(self.space) - 1]
        edges = [2 * near + 1] * len(self.space)
        field = self._padded(dither[:, self.numbers], near)
        return convolution(field, kernel.view(len(kernel), -1, *edges)).flatten(1)

    def cells(self, outputs: Tensor) -> Tensor:
        """Answers by cell: `(rows, size_out)` to `(rows, cells, channels)`."""
        return self._fields(outputs).flatten(2).transpose(1, 2) if self.space else outputs[:, None]

    def basis(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of the products' factors, and uncorrelated combinations of deviation one.

        Neighbours of a smooth field are nearly the same; a gain depends on the differences between them.

        Args:
            given: as `given` gives it.

        Returns:
            `(m,)` and `(m, m)`.
        """
        all_cells = self._neighbours(given, self.factors).transpose(0, 1).flatten(1)
        middle = all_cells.mean(dim=1, keepdim=True)
        deviations = all_cells - middle
        squares, directions = torch.linalg.eigh(deviations @ deviations.T / max(1, deviations.shape[1]))
        rounding = torch.finfo(torch.float32).eps ** 2 * squares.sum()
        above_rounding = squares > rounding
        short = torch.where(above_rounding, squares, torch.inf).rsqrt()
        return middle[:, 0], short[:, None] * directions.T

    def beside(self, given: Tensor, basis: tuple[Tensor, Tensor]) -> Tensor:
        """Return the factors of the products, `(rows, m, cells)`.

        Args:
            given: as `given` gives it.
            basis: as `basis` gives it.
        """
        middle, directions = (part.to(given) for part in basis)
        return directions @ (self._neighbours(given, self.factors) - middle[:, None])

    def _neighbours(self, flat: Tensor, numbers: Tensor) -> Tensor:
        """Numbers of rows at a cell and those that share a side with it: `(rows, n, cells)`."""
        if not self.space:
            return flat[:, numbers, None]
        field = self._padded(flat[:, numbers], 1)
        steps = [0] * len(self.space)
        moves = [steps] + [
            [*steps[:axis], by, *steps[axis + 1 :]]
            for axis, by in itertools.product(range(len(self.space)), (-1, 1))
        ]
        neighbours = [
            field[(..., *(slice(1 + by, 1 + by + n) for by, n in zip(move, self.space, strict=True)))]
            for move in moves
        ]
        return torch.stack(neighbours, dim=2).flatten(3).flatten(1, 2)

    def _padded(self, flat: Tensor, near: int) -> Tensor:
        """Fields with what is around them: `(rows, channels, *larger)`."""
        field = self._fields(flat)
        for axis, (length, wraps) in enumerate(zip(self.space, self.wraps, strict=True), start=2):
            cells = torch.arange(-near, length + near, device=field.device)
            field = field.index_select(axis, cells % length)
            if not wraps:
                inside = (cells >= 0) & (cells < length)
                field = field * inside.view(-1, *[1] * (field.ndim - axis - 1))
        return field

    def _fields(self, flat: Tensor) -> Tensor:
        """`(rows, size)` as `(rows, channels, *space)`, the arrays one after another."""
        return flat.view(len(flat), len(flat[0]) // math.prod(self.space), *self.space)

    def _channels(self, numbers: Tensor) -> int:
        return len(numbers) // math.prod(self.space)


def given(rows: CallPairs) -> Tensor:
    """All numbers that rows have been given, differentiable ones first: `(rows, n)`."""
    return torch.cat([rows.z, *(part.reshape(len(part), -1).to(rows.z) for part in _others(rows))], dim=1)


def _others(rows: CallPairs) -> list[Tensor]:
    return [part for part in rows.others if part is not None and part.is_floating_point()]


def _is_on(shape: tuple[int, ...], space: tuple[int, ...]) -> bool:
    """Say whether an array is a field, or several, on a grid; without a grid all are."""
    fields = len(shape) - len(space)
    return not space or (fields in (0, 1) and shape[fields:] == space)
