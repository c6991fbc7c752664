"""`OutputMap`: the linear map behind a model, fitted in closed form around the span of the box's outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SPAN = 1e-5  # directions in which outputs vary by less than this fraction of the largest are none
RIDGES = (
    1e-5,
    1e-3,
    1e-1,
)  # of the largest diagonal entry; the one that predicts held-out rows best, or none
ALONE = 0.02  # a model whose held-out mean square error is this much smaller without a map has none
HELD_OUT = 4  # one row in so many, the last


class OutputMap:
    """y = m_y + (x - m_x) W, x the values of a model and y the box's, both `(rows, size)`.

    In units in which all numbers have the same weight, W = Pi + (S + r)^-1 (C - S Pi), with S and C the
    covariances of x with itself and with y, Pi the orthogonal projector on the span of the outputs y, and r a
    ridge: so W is Pi where the rows say nothing else. Its purpose: outputs often obey a constraint, such as
    zero divergence, that the box imposes on any input. Values never show that, since all of them obey it: a
    model that passes changes on is wrong there, and Pi is right.

    The fit takes the smaller of two forms of one formula: with matrices of size x size, or of rows x rows.
    """

    def __init__(self) -> None:
        # both means, and the scale of each number; of a map that is not fitted yet there are no numbers
        self._units = torch.empty(0), torch.empty(0), torch.empty(0)
        self._factors: tuple[Tensor, ...] = ()  # a matrix, or pairs of factors that are added
        self._ridge: float | None = RIDGES[0]

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, scale: Tensor, again: bool = True) -> bool | None:
        """Fit to rows.

        Args:
            x: a model's values, `(rows, size)`, in the order in which they came.
            y: the box's, `(rows, size)`.
            scale: the unit of each number, `(size,)`, above zero.
            again: whether the ridge is chosen again, which costs another fit; else it stays as it was.

        Returns:
            Whether the model alone predicts held-out rows so well that no map is to be put behind it; None
            where no rows were held out.
        """
        alone: bool | None = None
        train, dtype = len(x) - len(x) // HELD_OUT, x.dtype
        wide = scale.double()
        a, b = x.double() / wide, y.double() / wide
        one = torch.ones_like(wide)
        if again and train < len(x):
            errors: dict[float | None, float] = {}
            test = slice(train, len(x))
            parts = _Parts(a[:train], b[:train])
            for ridge in (*RIDGES, None):
                self._units, self._factors = (*parts.means, one), parts.factors(ridge)
                errors[ridge] = float((self(a[test]) - b[test]).square().mean())
            self._ridge = min(errors, key=lambda ridge: errors[ridge])
            alone = float((a[test] - b[test]).square().mean()) < ALONE * errors[self._ridge]
        parts = _Parts(a, b)
        first, second = (mean * wide for mean in parts.means)
        self._units = first.to(dtype), second.to(dtype), scale.to(dtype)
        factors = parts.factors(self._ridge)
        # contiguous, as they are read from a checkpoint: products of a transposed view round otherwise
        self._factors = tuple(factor.to(dtype).contiguous() for factor in factors)
        return alone

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, size)` to `(rows, size)`."""
        mean_in, mean_out, _ = self._units
        return mean_out + self.pushed(x - mean_in)

    def pushed(self, change: Tensor) -> Tensor:
        """Return the change of answers, `(rows, size)`, for a change `(rows, size)` of the model's."""
        scale = self._units[2]
        x = change / scale
        if len(self._factors) == 1:
            return scale * (x @ self._factors[0])
        pairs = zip(self._factors[::2], self._factors[1::2], strict=True)
        return scale * sum((x @ first) @ second for first, second in pairs)

    def pulled(self, cotangent: Tensor) -> Tensor:
        """The transpose of `pushed`."""
        scale = self._units[2]
        v = cotangent * scale
        if len(self._factors) == 1:
            return (v @ self._factors[0].T) / scale
        pairs = zip(self._factors[::2], self._factors[1::2], strict=True)
        return sum((v @ second.T) @ first.T for first, second in pairs) / scale

    def state_dict(self) -> dict[str, Any]:
        """The units and factors."""
        return {"units": self._units, "factors": self._factors, "ridge": self._ridge}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        mean_in, mean_out, scale = (tensor.to(device) for tensor in state["units"])
        self._units, self._ridge = (mean_in, mean_out, scale), state["ridge"]
        self._factors = tuple(factor.to(device) for factor in state["factors"])


class _Parts:
    """The parts of a map's factors: `(rows, size)` in float64, of a model (a) and of the box (b)."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.means = a.mean(dim=0), b.mean(dim=0)
        self.a, b = a - self.means[0], b - self.means[1]
        self.small = a.shape[1] <= a.shape[0]
        if self.small:
            values, vectors = torch.linalg.eigh(b.T @ b)
            self.span = vectors[:, values > SPAN**2 * values[-1]]
            self.gram = self.a.T @ self.a
            self.missed = self.a.T @ b - (self.gram @ self.span) @ self.span.T
        else:
            values, vectors = torch.linalg.eigh(b @ b.T)
            span = values > SPAN**2 * values[-1]
            self.span = b.T @ (vectors[:, span] / values[span].sqrt())
            self.gram = self.a @ self.a.T
            self.missed = b - (self.a @ self.span) @ self.span.T
        self.largest = self.a.square().sum(dim=0).max()

    def factors(self, ridge: float | None) -> tuple[Tensor, ...]:
        """W, or the factors of its two parts; without a ridge the projector alone."""
        solution = None
        if ridge is not None and self.largest > 0:
            gram = self.gram.clone()
            gram.diagonal().add_(ridge * self.largest)
            solution = torch.cholesky_solve(self.missed, torch.linalg.cholesky(gram))
        if self.small:
            projector = self.span @ self.span.T
            return (projector if solution is None else projector + solution,)
        return (self.span, self.span.T, *(() if solution is None else (self.a.T, solution)))
