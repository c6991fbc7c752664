"""Bases that confine random directions: low frequencies (DCT), or vectors that the user gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from blackbox.checks import check_count
from zo.errors import ConfigurationError

Shapes = tuple[tuple[int, ...], ...]


class Basis(ABC):
    """An orthonormal set of vectors in the space of one row's inputs."""

    @abstractmethod
    def vectors(self, shapes: Shapes) -> Tensor:
        """The vectors for inputs of these shapes; called once in each backward pass.

        Args:
            shapes: the shapes of one row's perturbed inputs, in the order in which they are concatenated.

        Returns:
            `(vectors, size)` float64, orthonormal rows; `size` is all the inputs' numbers together.

        Raises:
            ConfigurationError: the basis is not one for these shapes.
        """


@dataclass(frozen=True)
class DCTBasis(Basis):
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
        """Products of cosines, each in one of the inputs."""
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


class GivenBasis(Basis):
    """The space that given vectors span, such as principal components of states seen before.

    Args:
        vectors: `(vectors, ...)`, each entry one row's perturbed inputs, or these flat and end to
            end where there are several. They need not be orthogonal.

    Raises:
        ConfigurationError: not finite, no vectors, or vectors that depend on each other.
    """

    def __init__(self, vectors: Tensor) -> None:
        if vectors.ndim < 2 or not vectors.numel() or not torch.isfinite(vectors).all():
            raise ConfigurationError(
                f"GivenBasis: expected finite vectors, first axis their number, got shape "
                f"{tuple(vectors.shape)}{'' if torch.isfinite(vectors).all() else ' with NaN or infinity'}. "
                "Stack one flat vector per entry."
            )
        flat = vectors.detach().cpu().double().flatten(1)
        rank = int(torch.linalg.matrix_rank(flat))
        if rank < len(flat):
            raise ConfigurationError(
                f"GivenBasis: expected vectors that do not depend on each other, got {len(flat)} that span "
                f"{rank} dimensions. Leave the superfluous ones out."
            )
        self._vectors = torch.linalg.qr(flat.T).Q.T.contiguous()

    def vectors(self, shapes: Shapes) -> Tensor:
        """An orthonormal basis of the same space."""
        size = sum(math.prod(shape) for shape in shapes)
        if self._vectors.shape[1] != size:
            raise ConfigurationError(
                f"GivenBasis: expected vectors of {size} numbers, for inputs of shapes {list(shapes)} that "
                f"require a gradient, got vectors of {self._vectors.shape[1]}. Detach the inputs that it "
                "leaves out, or extend it with zeros."
            )
        return self._vectors

    def __repr__(self) -> str:
        """Show the number of vectors and their size."""
        return f"GivenBasis({len(self._vectors)} vectors of {self._vectors.shape[1]} numbers)"
