"""`OutputMap`: the linear map behind a model's values, fitted in closed form around the span of the outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SPAN = 1e-5  # directions in which outputs vary by less than this fraction of the largest are none
RIDGES = (1e-5, 1e-3, 1e-1)  # of the largest diagonal entry; the one that tells held-out rows best, or none
HELD_OUT = 4  # one row in so many, the last


class OutputMap:
    """y = m_y + (x - m_x) W, x the values of a model and y the box's, both `(rows, size)`.

    W = Pi + (S + r)^-1 (C - S Pi), with S and C the covariances of x with itself and with y, Pi the orthogonal
    projector on the span of the outputs y, and r a ridge: so W is Pi where the rows say nothing else. What it is
    for: outputs often obey a constraint, such as zero divergence, that a box removes from its inputs. Values
    never show how, since they all obey it; a model that passes changes on is wrong there, and Pi is right.

    The fit takes the smaller of two forms of one formula: with matrices of size x size, or of rows x rows.
    """

    def __init__(self) -> None:
        self._means: tuple[Tensor, Tensor] | None = None
        self._factors: tuple[Tensor, ...] = ()  # a matrix, or pairs of factors that are added

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """Fit to rows in the order in which they came, `(rows, size)` both, in units in which numbers count alike."""
        train, dtype = len(x) - len(x) // HELD_OUT, x.dtype
        a, b = x.double(), y.double()
        errors = {ridge: 0.0 for ridge in (*RIDGES, None)}
        if train < len(x):
            test = slice(train, len(x))
            parts = _Parts(a[:train], b[:train])
            for ridge in errors:
                self._means, self._factors = parts.means, parts.factors(ridge)
                errors[ridge] = float((self(a[test]) - b[test]).square().mean())
        parts = _Parts(a, b)
        means, factors = parts.means, parts.factors(min(errors, key=lambda ridge: errors[ridge]))
        self._means = means[0].to(dtype), means[1].to(dtype)
        self._factors = tuple(factor.to(dtype) for factor in factors)

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, size)` to `(rows, size)`."""
        assert self._means is not None  # it is fitted before it is used
        x = x - self._means[0]
        if len(self._factors) == 1:
            return self._means[1] + x @ self._factors[0]
        pairs = zip(self._factors[::2], self._factors[1::2], strict=True)
        return self._means[1] + sum((x @ first) @ second for first, second in pairs)

    def state_dict(self) -> dict[str, Any]:
        """Means and factors."""
        return {"means": self._means, "factors": self._factors}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        self._means = None if state["means"] is None else tuple(m.to(device) for m in state["means"])
        self._factors = tuple(factor.to(device) for factor in state["factors"])


class _Parts:
    """What a map's factors are made of: `(rows, size)` in float64, of a model and of the box."""

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
            kept = values > SPAN**2 * values[-1]
            self.span = b.T @ (vectors[:, kept] / values[kept].sqrt())
            self.gram = self.a @ self.a.T
            self.missed = b - (self.a @ self.span) @ self.span.T
        self.largest = self.a.square().sum(dim=0).max()

    def factors(self, ridge: float | None) -> tuple[Tensor, ...]:
        """W, or the factors of its two parts; without a ridge the projector alone."""
        solved = None
        if ridge is not None:
            gram = self.gram.clone()
            gram.diagonal().add_(ridge * self.largest)
            solved = torch.cholesky_solve(self.missed, torch.linalg.cholesky(gram))
        if self.small:
            projector = self.span @ self.span.T
            return (projector if solved is None else projector + solved,)
        return (self.span, self.span.T, *(() if solved is None else (self.a.T, solved)))
