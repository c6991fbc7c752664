"""`ConvTangent`: for boxes on grids, a stencil whose coefficients are linear in the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from blackbox import ArraySpec
from blackbox.checks import check_choice, check_count, check_number
from zo.errors import ConfigurationError
from zo.tangents.pairs import CallPairs, sizes
from zo.tangents.tangent import IdentityTangent, Tangent

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class ConvTangent(Tangent):
    """J(z) d = A d + W conv d + sum_c [ z_c (W_c conv d) + W'_c conv (z_c d) ], c the channels of z.

    The same stencils in all cells, fitted by recursive ridge least squares. Exact for a box that is local,
    the same everywhere and made of stencils of the state and of products of its channels in a cell, as
    the fluxes of a fluid are; of others what is nearest. Walls and obstacles it does not see: put
    `WindowTangent` behind it, never before.

    For a box whose differentiable inputs and outputs are arrays `(channels, *space)` on one grid of one to
    three dimensions, in cells or, staggered, with one more along an axis for the faces.

    Memory: features = channels x kernel^space x (1 + 2 channels); 8 x features^2 bytes, and for a step
    4 bytes x pairs of 64 x cells x features. A step: 2 x pairs x cells x features^2 operations.

    Args:
        prior: A; the identity if left out.
        kernel: odd width of the stencils, in cells.
        padding: "zeros" beyond the boundary, or "circular" for a periodic domain.
        forgetting: the factor by which what was seen counts less with each step.
        ridge: relative to each feature's mean square, so channels may have units of their own.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a box without such arrays.
    """

    def __init__(
        self,
        prior: Tangent | None = None,
        kernel: int = 3,
        *,
        padding: Literal["zeros", "circular"] = "zeros",
        forgetting: float = 0.98,
        ridge: float = 1e-6,
    ) -> None:
        check_count("ConvTangent", "kernel", kernel)
        if kernel % 2 == 0:
            raise ConfigurationError(
                f"ConvTangent, kernel: expected an odd width, got {kernel}. Take {kernel + 1}."
            )
        check_choice("ConvTangent", "padding", padding, ("zeros", "circular"))
        check_number("ConvTangent", "forgetting", forgetting, above=0, most=1.0)
        check_number("ConvTangent", "ridge", ridge, least=1e-14)
        self.prior = IdentityTangent() if prior is None else prior
        self.kernel = kernel
        self.padding = padding
        self.forgetting = forgetting
        self.ridge = ridge
        self._sums: tuple[Tensor, Tensor] | None = None  # features x features, features x channels out
        self._coefficients: Tensor | None = None

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """The stencils on the changes."""
        found = self.prior.apply(pairs, d)
        if self._sums is None:
            return found
        return found + torch.stack([self._stencils(pairs, change) for change in d])

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """By autograd through `apply`, which is linear in the changes."""
        found = self.prior.vjp(pairs, cotangent)
        if self._sums is None:
            return found
        with torch.enable_grad():
            d = torch.zeros_like(pairs.z, requires_grad=True)
            return found + torch.autograd.grad(self._stencils(pairs, d), d, cotangent)[0]

    def observe(self, pairs: CallPairs) -> None:
        """Forget a little and add the new pairs."""
        self.prior.observe(pairs)
        residuals = (pairs.response - self.prior.apply(pairs, pairs.d))[0]
        given, answered = _grids(pairs)
        features = given.channels * self.kernel ** len(given.space) * (1 + 2 * given.channels)
        if self._sums is None:
            zeros = pairs.z.new_zeros(features, features + answered.channels, dtype=torch.float64)
            self._sums = zeros[:, :features].clone(), zeros[:, features:].clone()
        gram, cross = (self.forgetting * total for total in self._sums)
        for first in range(0, len(pairs.z), 64):  # all at once would take gigabytes
            part = slice(first, first + 64)
            z, d = (given.joined(tensor[part]) for tensor in (pairs.z, pairs.d[0]))
            rows = self._features(z, d)[answered.shared].flatten(2).transpose(1, 2).flatten(0, 1).double()
            wanted = answered.joined(residuals[part])[answered.shared].flatten(2)
            gram += rows.T @ rows
            cross += rows.T @ wanted.transpose(1, 2).flatten(0, 1).double()
        self._sums, self._coefficients = (gram, cross), None

    def state_dict(self) -> dict[str, Any]:
        """The two sums and the prior's state."""
        sums = None if self._sums is None else [total.clone() for total in self._sums]
        return {"prior": self.prior.state_dict(), "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.prior.load_state_dict(state["prior"])
        self._sums = None if state["sums"] is None else (state["sums"][0].clone(), state["sums"][1].clone())
        self._coefficients = None

    def _features(self, z: Tensor, d: Tensor) -> Tensor:
        """What the coefficients of a cell multiply, `(rows, features, *space)`."""
        own = self._neighbours(d)
        moved = self._neighbours(_products(z, d))
        scaled = z[:, :, None] * own[:, None]
        return torch.cat([own, moved, scaled.flatten(1, 2)], dim=1)

    def _neighbours(self, grid: Tensor) -> Tensor:
        """The stencil's values around each cell: `(rows, channels * stencil, *space)`."""
        windows, space = self._padded(grid), grid.ndim - 2
        for axis in range(2, grid.ndim):
            windows = windows.unfold(axis, self.kernel, 1)
        return windows.movedim(tuple(range(-space, 0)), tuple(range(2, 2 + space))).flatten(1, 1 + space)

    def _padded(self, grid: Tensor) -> Tensor:
        around = [self.kernel // 2] * (2 * (grid.ndim - 2))
        return functional.pad(grid, around, "constant" if self.padding == "zeros" else "circular")

    def _stencils(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """`(rows, size_in)` to `(rows, size_out)`."""
        given, answered = _grids(pairs)
        channels, kernel = given.channels, (self.kernel,) * len(given.space)
        convolve, size = CONVOLUTIONS[len(kernel)], channels * self.kernel ** len(kernel)
        coefficients = self._solved().to(d.dtype).T  # (channels out, features)
        own, moved, scaled = coefficients.split([size, size * channels, size * channels], dim=1)
        outputs = len(own)
        z, d = given.joined(pairs.z), given.joined(d)
        joined = torch.cat([own, moved], dim=1).reshape(outputs, -1, *kernel)
        found = convolve(self._padded(torch.cat([d, _products(z, d)], dim=1)), joined)
        each = convolve(self._padded(d), scaled.reshape(outputs * channels, channels, *kernel))
        return answered.split(found + (each.unflatten(1, (outputs, channels)) * z[:, None]).sum(dim=2))

    def _solved(self) -> Tensor:
        """The coefficients `(features, channels out)`, once a step."""
        if self._coefficients is None:
            assert self._sums is not None  # its callers have asked
            gram, cross = self._sums
            size = gram.diagonal().sqrt()
            short = torch.where(size > 0, 1 / size, 0.0)  # features in units of their own
            ridged = short[:, None] * gram * short
            ridged.diagonal().add_(self.ridge)
            solved = torch.cholesky_solve(short[:, None] * cross, torch.linalg.cholesky(ridged))
            self._coefficients = short[:, None] * solved
        return self._coefficients

    def __repr__(self) -> str:
        """With its prior."""
        return f"ConvTangent({self.prior!r}, kernel={self.kernel})"


def _products(z: Tensor, d: Tensor) -> Tensor:
    """z_c d_j at each cell, c outermost: `(rows, channels^2, *space)`."""
    return (z[:, :, None] * d[:, None]).flatten(1, 2)


@dataclass(frozen=True)
class _Grid:
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
        return slice(None), slice(None), *(slice(length) for length in fewest)  # of (rows, channels, *space)

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


def _grids(pairs: CallPairs) -> tuple[_Grid, _Grid]:
    """Of a box's differentiable inputs and of its outputs, on the same cells.

    Raises:
        ConfigurationError: its arrays do not lie on one grid.
    """
    shapes = [spec.shape for spec in (*pairs.inputs, *pairs.outputs)]
    spaces = list(zip(*(shape[1:] for shape in shapes), strict=False))
    same = len({len(shape) for shape in shapes}) == 1 and len(shapes[0]) in (2, 3, 4)
    if not same or any(max(lengths) - min(lengths) > 1 for lengths in spaces):
        raise ConfigurationError(
            "ConvTangent: expected differentiable inputs and outputs (channels, *space) on the same cells, "
            "or one more along an axis for its faces; got shapes "
            f"{[s.shape for s in pairs.inputs]} and {[s.shape for s in pairs.outputs]}. "
            "Take WindowTangent or LowRankTangent."
        )
    space = tuple(max(lengths) for lengths in spaces)
    return _Grid(pairs.inputs, space), _Grid(pairs.outputs, space)
