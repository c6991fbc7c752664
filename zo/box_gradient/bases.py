"""`DCTBasis`: low frequencies, to which random directions may be confined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from blackbox.checks import check_count

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DCTBasis:
    """The lowest `modes` cosines (orthonormal DCT-II) along each of an input's trailing `axes`.

    The axes before them (channels) are kept whole, and axes shorter than `modes` as well. For an
    input `(channels, height, width)` that makes channels x modes x modes vectors.

    Args:
        modes: cosines along each axis, the constant one included.
        axes: how many trailing axes are space.

    Raises:
        ConfigurationError: a value below one.
    """

    modes: int
    axes: int = 2

    def __post_init__(self) -> None:
        """Check where it is written."""
        check_count("DCTBasis", "modes", self.modes)
        check_count("DCTBasis", "axes", self.axes)

    def vectors(self, shapes: Shapes) -> Tensor:
        """Products of cosines, each in one of the inputs; called once in each backward pass.

        Args:
            shapes: the shapes of one row's perturbed inputs, in the order in which they are concatenated.

        Returns:
            `(vectors, size)` float64, orthonormal rows; `size` is all the inputs' numbers together.
        """
        return _cosines(self.modes, self.axes, shapes)


@lru_cache(maxsize=8)  # the same at every call of an unrolled loop, and up to size x size numbers
def _cosines(modes: int, axes: int, shapes: Shapes) -> Tensor:
    from scipy.fft import dct  # a quarter of a second, for a basis that few take

    blocks = []
    for shape in shapes:
        block = torch.ones(1, 1, dtype=torch.float64)
        for axis, n in enumerate(shape):
            along = np.eye(n)
            if axis >= len(shape) - axes:
                along = np.asarray(dct(along, norm="ortho", axis=0))[:modes]
            block = torch.kron(block, torch.tensor(along))
        blocks.append(block)
    return torch.block_diag(*blocks)
