"""`LowRankTangent`: one matrix for the box, of low rank for a large state, by recursive least squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number
from zo.tangents.models.probed.behind import Behind
from zo.tangents.record.pairs import CallPairs, all_listed, reciprocal
from zo.tangents.tangent import IdentityTangent, Linearised, Tangent


class LowRankTangent(Tangent):
    """J = A + C^T (G + ridge)^-1 Q, with G = sum w c c^T and C = sum w c r^T over all pairs so far.

    Q are orthonormal directions of the box's input space in standard units (see `Units`), c = Q d the
    coordinates in them of changes d of length one, r what the prior A left of the responses when they were
    seen; w falls by `forgetting` a step. New changes add directions to Q; when there are half as many again
    as `rank`, those with the smallest eigenvalues of G go. With a rank no smaller than the space that changes
    span this is recursive ridge least squares for a full matrix.

    It does not depend on the state, and forgets gradually. Behind a prior that learns it remembers residuals
    of what that was, which a smaller `forgetting` helps against.

    Memory: 1.5 rank x (size_in + size_out) numbers. A step: 4 rank x (size_in + size_out) operations for
    each pair, and now and then 3 rank^2 x (size_in + size_out) to lower the rank again. A product with J: 2
    rank x (size_in + size_out) for each row. The directions are never more than size_in. G is in float64.

    Args:
        prior: A; the identity if left out.
        rank: the number of directions kept.
        forgetting: the factor by which what was seen counts less with each step.
        ridge: in units of changes of length one.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(
        self,
        prior: Tangent | None = None,
        rank: int = 256,
        forgetting: float = 0.98,
        ridge: float = 1e-3,
    ) -> None:
        check_count("LowRankTangent", "rank", rank)
        check_number("LowRankTangent", "forgetting", forgetting, above=0, most=1.0)
        check_number("LowRankTangent", "ridge", ridge, least=1e-10)
        self.prior = IdentityTangent() if prior is None else prior
        self.rank = rank
        self.forgetting = forgetting
        self.ridge = ridge
        self._directions = 0  # how many rows of these are filled
        self._sums: dict[str, Tensor] = {}  # basis Q, gram G, cross C
        self._scale = torch.empty(0)  # the unit of each input, in which Q is orthonormal
        self._factor: Tensor | None = None  # of G + ridge, once a step
        self._fresh: list[CallPairs] = []  # seen since it has learned

    def at(self, rows: CallPairs) -> Linearised:
        """A at these rows, and the matrix."""
        return _LowRankAt(rows, self.prior.at(rows), self)

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """As `at`, with A at all calls at once."""
        priors = self.prior.at_each(calls)
        return [_LowRankAt(rows, prior, self) for rows, prior in zip(calls, priors, strict=True)]

    def see(self, rows: CallPairs) -> None:
        """Have the prior see them, and keep those with probes until it learns."""
        self.prior.see(rows)
        if len(rows.d):
            self._fresh.append(rows)

    def learn(self, steps: int | None = None) -> None:
        """Forget a little and add the new pairs; without any, forget nothing."""
        self.prior.learn(steps)
        calls, self._fresh = self._fresh, []
        if not calls:
            return
        pairs = all_listed(calls)
        if not pairs.d.shape[1]:
            return
        residuals = (pairs.response - self.prior.at(pairs).push(pairs.d))[0]
        if not self._sums:
            self._allocate(pairs.d.shape[2], residuals.shape[1], like=pairs.d)
        self._take_units(pairs.d_scale)
        changes = pairs.d[0] * self._per_unit()
        coordinates = self._extend(changes)
        _, gram, cross = self._filled()
        cross.addmm_(coordinates.T, residuals, beta=self.forgetting)
        gram.addmm_(coordinates.double().T, coordinates.double(), beta=self.forgetting)
        self._factor = None

    def pushed(self, d: Tensor) -> Tensor | None:
        """C^T (G + ridge)^-1 Q d: `(..., size_in)` to `(..., size_out)`; None before it has learned."""
        if not self._directions:
            return None
        basis, _, cross = self._filled()
        coordinates = self._solve((d.reshape(-1, d.shape[-1]) * self._per_unit()) @ basis.T)
        return (coordinates @ cross).reshape(*d.shape[:-1], cross.shape[1])

    def pulled(self, v: Tensor) -> Tensor | None:
        """Q^T (G + ridge)^-1 C v: `(rows, size_out)` to `(rows, size_in)`; None before it has learned."""
        if not self._directions:
            return None
        basis, _, cross = self._filled()
        return (self._solve(v @ cross.T) @ basis) * self._per_unit()

    def state_dict(self) -> dict[str, Any]:
        """Directions and sums, and the prior's state."""
        tensors = [tensor.clone() for tensor in (*self._filled(), self._scale)] if self._sums else None
        return {"prior": self.prior.state_dict(), "kept": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.prior.load_state_dict(state["prior"])
        self._sums, self._directions, self._factor = {}, 0, None
        if state["kept"] is not None:
            basis, _, cross, scale = state["kept"]
            self._allocate(basis.shape[1], cross.shape[1], like=basis)
            self._directions, self._scale = len(basis), scale.clone()
            for tensor, value in zip(self._filled(), state["kept"][:3], strict=True):
                tensor.copy_(value)

    def _allocate(self, size_in: int, size_out: int, like: Tensor) -> None:
        most = min(self.rank + self.rank // 2 + 1, size_in)
        self._sums = {
            "basis": like.new_zeros(most, size_in),
            "gram": like.new_zeros(most, most, dtype=torch.float64),
            "cross": like.new_zeros(most, size_out),
        }
        self._scale = like.new_zeros(size_in)

    def _per_unit(self) -> Tensor:
        return reciprocal(self._scale)

    def _take_units(self, scale: Tensor) -> None:
        """Go on in other units, with the same matrix: J is a map between numbers in the box's units."""
        if self._directions and not torch.equal(scale, self._scale):
            # d = Q^T c in old units is f Q^T c in new ones, f the ratio of the units; f Q^T = new Q^T R.
            basis, gram, cross = self._filled()
            new, triangle = torch.linalg.qr((basis * (self._scale * reciprocal(scale))).double().T)
            gram.copy_(triangle @ gram @ triangle.T)
            cross.copy_((triangle @ cross.double()).to(cross.dtype))
            basis.copy_(new.T.to(basis.dtype))
            self._factor = None
        self._scale = scale.clone()

    def _filled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views of Q, G and C without the rows that are still empty."""
        count = self._directions
        return self._sums["basis"][:count], self._sums["gram"][:count, :count], self._sums["cross"][:count]

    def _extend(self, changes: Tensor) -> Tensor:
        """Add to Q what the changes have beyond it; returns their coordinates `(pairs, directions)`."""
        inside = changes @ self._filled()[0].T
        # The principal directions of what is outside, by an eigenproblem of pairs x pairs, not of size_in.
        whole, within = changes.double(), inside.double()
        energy, mixtures = torch.linalg.eigh(whole @ whole.T - within @ within.T)  # ascending
        count = int((energy > 100 * torch.finfo(changes.dtype).eps).sum())
        if self._directions >= self.rank:  # the rest of a step's would only take each other's place
            count = min(count, max(1, self.rank // 16))
        most, size_in = self._sums["basis"].shape
        if self._directions + count > most and most < size_in:
            count = min(count, most - self.rank)
            self._lower_rank()
            inside = changes @ self._filled()[0].T
        count = min(count, most - self._directions)
        if not count:
            return inside
        new = mixtures[:, -count:].T.to(changes.dtype) @ changes
        for _ in range(2):  # the second time for what rounding left
            basis = self._filled()[0]
            new = torch.linalg.qr((new - (new @ basis.T) @ basis).T).Q.T
        self._sums["basis"][self._directions : self._directions + count] = new
        self._directions += count
        return torch.cat([inside, changes @ new.T], dim=1)

    def _lower_rank(self) -> None:
        """Keep the `rank` directions that G says were seen most."""
        energy, vectors = torch.linalg.eigh(self._filled()[1])
        basis, gram, cross = self._filled()
        rotation = vectors[:, -self.rank :].T.to(basis.dtype)
        basis[: self.rank], cross[: self.rank] = rotation @ basis, rotation @ cross
        gram[: self.rank, : self.rank] = torch.diag(energy[-self.rank :])
        for array in (basis, gram, gram.T, cross):
            array[self.rank :] = 0.0
        self._directions = self.rank

    def _solve(self, coordinates: Tensor) -> Tensor:
        """(G + ridge)^-1 on the rows of coordinates `(rows, directions)`."""
        factor = self._factor
        if factor is None:
            matrix = self._filled()[1].clone()
            matrix.diagonal().add_(self.ridge)
            self._factor = factor = torch.linalg.cholesky(matrix)
        return torch.cholesky_solve(coordinates.T.double(), factor).T.to(coordinates.dtype)

    def __repr__(self) -> str:
        """The settings, with the prior."""
        return f"LowRankTangent({self.prior!r}, rank={self.rank}, forgetting={self.forgetting:g})"


class _LowRankAt(Behind):
    """The matrix behind a prior at the rows of a call."""

    def __init__(self, rows: CallPairs, prior: Linearised, tangent: LowRankTangent) -> None:
        super().__init__(rows, prior)
        self._tangent = tangent

    def push(self, d: Tensor) -> Tensor:
        """A d + C^T (G + ridge)^-1 Q d."""
        responses, corrections = self.prior.push(d), self._tangent.pushed(d)
        return responses if corrections is None else responses + corrections

    def pull(self, v: Tensor) -> Tensor:
        """A^T v + Q^T (G + ridge)^-1 C v."""
        gradients, corrections = self.prior.pull(v), self._tangent.pulled(v)
        return gradients if corrections is None else gradients + corrections
