"""`Grid`: a row's arrays on the cells and faces of a grid, as the channels of one array."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from blackbox import ArraySpec
from zo.errors import ConfigurationError
from zo.tangents.pairs import CallPairs, sizes


@dataclass(frozen=True)
class Grid:
    """Where a row's arrays lie.

    A staggered array has one cell more along an axis than others; all begin at the same corner, so what
    has the same index is next to one another.

    Attributes:
        specs: of the arrays, each `(channels, *space)`.
        space: cells along each axis, of the largest.
    """

    specs: tuple[ArraySpec, ...]
    space: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Of all arrays."""
        return sum(spec.shape[0] for spec in self.specs)

    @property
    def shared(self) -> tuple[slice, ...]:
        """The cells that every array has."""
        fewest = (min(lengths) for lengths in zip(*(spec.shape[1:] for spec in self.specs), strict=True))
        return (
            slice(None),
            slice(None),
            *(slice(length) for length in fewest),
        )  # of (rows, channels, *space)

    def joined(self, flat: Tensor) -> Tensor:
        """`(rows, numbers of a row)` to `(rows, channels, *space)`, zero where an array has no cell."""
        arrays = flat.split(sizes(self.specs), dim=1)
        padded = []
        for spec, array in zip(self.specs, arrays, strict=True):
            missing = [all_ - own for all_, own in zip(self.space, spec.shape[1:], strict=True)]
            around = [n for length in reversed(missing) for n in (0, length)]
            padded.append(functional.pad(array.reshape(-1, *spec.shape), around))
        return torch.cat(padded, dim=1)

    def split(self, joined: Tensor) -> Tensor:
        """The way back."""
        arrays = joined.split([spec.shape[0] for spec in self.specs], dim=1)
        pairs = zip(self.specs, arrays, strict=True)
        cut = [array[(..., *(slice(length) for length in spec.shape[1:]))] for spec, array in pairs]
        return torch.cat([array.flatten(1) for array in cut], dim=1)


def grids(pairs: CallPairs) -> tuple[Grid, Grid]:
    """Of a box's differentiable inputs and of its outputs, on the same cells.

    Raises:
        ConfigurationError: its arrays do not lie on one grid.
    """
    shapes = [spec.shape for spec in (*pairs.inputs, *pairs.outputs)]
    spaces = list(zip(*(shape[1:] for shape in shapes), strict=False))
    alike = len({len(shape) for shape in shapes}) == 1 and len(shapes[0]) in (2, 3, 4)
    if not alike or any(max(lengths) - min(lengths) > 1 for lengths in spaces):
        raise ConfigurationError(
            "ConvTangent: expected differentiable inputs and outputs (channels, *space) on the same cells, "
            "or one more along an axis for its faces; got shapes "
            f"{[s.shape for s in pairs.inputs]} and {[s.shape for s in pairs.outputs]}. "
            "Take WindowTangent or LowRankTangent."
        )
    space = tuple(max(lengths) for lengths in spaces)
    return Grid(pairs.inputs, space), Grid(pairs.outputs, space)
