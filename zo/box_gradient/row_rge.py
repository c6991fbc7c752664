"""`RowRGE`: random directions at a black box's input, drawn for each row; orthogonal, or in a basis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blackbox.checks import check_choice, check_count, check_flag
from zo.box_gradient.bases import DCTBasis, Shapes
from zo.errors import ConfigurationError
from zo.estimators.estimator import check_mu
from zo.estimators.rge import draw_directions

DISTRIBUTIONS = ("gaussian", "sphere", "rademacher", "orthogonal")
UNIT_LENGTH = ("sphere", "orthogonal")  # covariance identity / dimensions, hence the factor c


@dataclass(frozen=True)
class RowRGE:
    """The random gradient estimator at a black box's input, for `differentiable`.

        forward   g = (c/q) sum_i <v, F(z + mu u_i) - F(z)> / mu * u_i
        central   g = (c/q) sum_i <v, F(z + mu u_i) - F(z - mu u_i)> / 2 mu * u_i

    for each row z, with v the gradient that arrives at its output. c and the first three distributions are
    the same as in `RGE`. "orthogonal" draws sets of orthonormal vectors, each uniform on the sphere, so c is
    again the number of dimensions k. The estimate is unbiased, varies less than with independent directions,
    and equals the whole gradient if q = k.

    With a `basis`, directions stay in its span: k is its number of vectors. The estimate is of the gradient's
    part in the span, and is biased by the rest.

    One mu suits numbers of one size. If inputs have different units, metres beside pascals, give each
    `ArraySpec` its `scale`: each number then moves by mu times its scale. The estimate is still that of the
    gradient with respect to the number itself, and unbiased as before. Directions in a basis are moved by mu
    as the basis has them.

    Args:
        mu: smoothing parameter, in the inputs' units, or in their scales if the specs have any.
        q: number of directions for each row; orthogonal ones beyond k come from further sets.
        distribution: "gaussian", "sphere", "rademacher" or "orthogonal".
        central: whether each direction is taken with both signs, for 2 q queries per row instead of q.
        basis: the span in which directions stay; None for the whole space.

    Raises:
        ConfigurationError: a value is out of range.
    """

    mu: float
    q: int
    distribution: Literal["gaussian", "sphere", "rademacher", "orthogonal"] = "orthogonal"
    central: bool = False
    basis: DCTBasis | None = None

    def __post_init__(self) -> None:
        """Check where it is written."""
        check_mu("RowRGE", self.mu)
        check_count("RowRGE", "q", self.q)
        check_choice("RowRGE", "distribution", self.distribution, DISTRIBUTIONS)
        check_flag("RowRGE", "central", self.central)
        if self.basis is not None and not isinstance(self.basis, DCTBasis):
            raise ConfigurationError(
                f"RowRGE, basis: expected a DCTBasis, got {type(self.basis).__name__}. "
                "Leave it out for directions in the whole space."
            )

    def draw(
        self, rows: int, shapes: Shapes, dtype: torch.dtype, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """The directions of one call, on the CPU.

        Args:
            rows: how many rows; each gets directions of its own.
            shapes: the shapes of one row's perturbed inputs.
            dtype: the dtype of the directions.
            generator: a fresh one, keyed.

        Returns:
            `(q, rows, size)`, and the factor c.
        """
        basis = None if self.basis is None else self.basis.vectors(shapes).to(dtype)
        size = sum(math.prod(shape) for shape in shapes) if basis is None else len(basis)
        if self.distribution == "orthogonal":
            u = _orthonormal(self.q, rows, size, dtype, generator)
        else:
            u = draw_directions(self.distribution, (self.q, rows, size), dtype, generator)
        factor = size if self.distribution in UNIT_LENGTH else 1
        return u if basis is None else u @ basis, factor


def _orthonormal(
    q: int, rows: int, dimensions: int, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Sets of up to `dimensions` orthonormal vectors, uniform over rotations: `(q, rows, dimensions)`."""
    sets = []
    for start in range(0, q, dimensions):
        count = min(dimensions, q - start)
        gaussian = torch.randn(rows, dimensions, count, generator=generator, dtype=dtype)
        frame, triangle = torch.linalg.qr(gaussian)
        # Without these signs the frame depends on LAPACK's convention and is not uniform (Mezzadri 2007).
        signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(dtype)
        sets.append((frame * signs[:, None, :]).permute(2, 0, 1))
    return torch.cat(sets)
