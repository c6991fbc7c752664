"""`DenseTangent`: one matrix for the box, by recursive ridge least squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zo.estimators.estimator import check_count
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import Identity, Tangent, check_positive


class DenseTangent(Tangent):
    """J = A + M with M^T = P C, P = (G + ridge)^-1, G = sum w d d^T, C = sum w d r^T over all pairs so far.

    d are changes of length one, r what the prior A left of the responses when they were seen, and w
    falls by `forgetting` a step. It does not depend on the state, as `Memory`, but forgets gradually.
    Behind a prior that learns it remembers residuals of what that was: there take `Memory`.

    P and M are carried from step to step by the formula of Woodbury, in which the ridge is forgotten too;
    so every `refit` steps they are solved for anew, before P loses its digits where there are no changes.

    Memory: 16 bytes x size_in x (size_in + size_out) and about as much at work: for 1,024 numbers in and
    out 34 MB, for 4,096 half a gigabyte; beyond that take `Memory`. A step: 6 x size_in x (size_in +
    size_out) operations for each pair. A fit: 2 size_in^2 (size_in + size_out). All in float64.

    Args:
        prior: A; the identity if left out.
        forgetting: the factor by which what was seen counts less with each step.
        ridge: in units of changes of length one.
        refit: steps between fits; 1 for always.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(
        self,
        prior: Tangent | None = None,
        forgetting: float = 0.98,
        ridge: float = 1e-3,
        refit: int = 20,
    ) -> None:
        check_positive("DenseTangent", "forgetting", forgetting, most=1.0)
        check_positive("DenseTangent", "ridge", ridge, least=1e-10)
        check_count("DenseTangent", "refit", refit)
        self.prior = Identity() if prior is None else prior
        self.forgetting = forgetting
        self.ridge = ridge
        self.refit = refit
        self._steps = 0
        self._kept: dict[str, Tensor] = {}  # gram G, cross C, inverse P, matrix M^T
        self._rounded: Tensor | None = None  # M^T in the data's dtype

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """A d + M d."""
        found = self.prior.apply(pairs, d)
        return found + d @ self._matrix(d.dtype) if self._kept else found

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """A^T v + M^T v."""
        found = self.prior.vjp(pairs, cotangent)
        return found + cotangent @ self._matrix(cotangent.dtype).T if self._kept else found

    def observe(self, pairs: CallPairs) -> None:
        """Forget a little and add the new pairs; without any, forget nothing."""
        self.prior.observe(pairs)
        changes = pairs.d[0].double()
        residuals = (pairs.response - self.prior.apply(pairs, pairs.d))[0].double()
        if not len(changes):
            return
        kept = self._kept
        if not kept:
            kept["gram"] = changes.new_zeros(changes.shape[1], changes.shape[1])
            kept["cross"] = changes.new_zeros(changes.shape[1], residuals.shape[1])
        kept["gram"].addmm_(changes.T, changes, beta=self.forgetting)
        kept["cross"].addmm_(changes.T, residuals, beta=self.forgetting)
        if self._steps % self.refit == 0 or 2 * len(changes) > changes.shape[1]:  # or no less work
            self._fit()
        else:
            self._update(changes, residuals)
        self._steps += 1
        self._rounded = None

    def state_dict(self) -> dict[str, Any]:
        """The sums, what was solved from them, and the prior's state."""
        kept = {name: tensor.clone() for name, tensor in self._kept.items()}
        return {"prior": self.prior.state_dict(), "steps": self._steps, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.prior.load_state_dict(state["prior"])
        self._steps, self._rounded = state["steps"], None
        self._kept = {name: tensor.clone() for name, tensor in state["kept"].items()}

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        """M^T, rounded once a step: it is read for each call."""
        if self._rounded is None or self._rounded.dtype != dtype:
            self._rounded = self._kept["matrix"].to(dtype)
        return self._rounded

    def _fit(self) -> None:
        ridged = self._kept["gram"].clone()
        ridged.diagonal().add_(self.ridge)
        self._kept["inverse"] = torch.cholesky_inverse(torch.linalg.cholesky(ridged))
        self._kept["matrix"] = self._kept["inverse"] @ self._kept["cross"]

    def _update(self, changes: Tensor, residuals: Tensor) -> None:
        """Woodbury: (w P^-1 + D^T D)^-1 = [P - P D^T (w + D P D^T)^-1 D P] / w."""
        moved = changes @ self._kept["inverse"]
        small = moved @ changes.T
        small.diagonal().add_(self.forgetting)
        gain = torch.cholesky_solve(moved, torch.linalg.cholesky(small))  # D P of the new P
        missed = residuals - changes @ self._kept["matrix"]
        self._kept["matrix"].addmm_(gain.T, missed)
        forgot = 1.0 / self.forgetting
        self._kept["inverse"].addmm_(moved.T, gain, beta=forgot, alpha=-forgot)

    def __repr__(self) -> str:
        """With its prior."""
        return f"DenseTangent({self.prior!r}, forgetting={self.forgetting:g})"
