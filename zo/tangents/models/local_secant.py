"""`LocalSecant`: the derivative at one call and row, from the probes of just that call and row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import Identity, Tangent, check_positive


class LocalSecant(Tangent):
    """J = A + R^T (D D^T)^+ D, D a row's changes of length one, R the responses that the prior A leaves.

    It follows any dependence on the state, and is exact, to the truncation of mu, once the probes span
    what the parameters can reach of the box's input space; in all other directions it is its prior. It
    needs many probes and keeps nothing between steps.

    Cost of a call: a q x q eigenproblem for each row and q products with vectors; q the probes.

    Args:
        prior: A; the identity if left out.
        cut: singular values of D below this fraction of the largest count as zero.

    Raises:
        ConfigurationError: cut out of range.
    """

    def __init__(self, prior: Tangent | None = None, cut: float = 3e-3) -> None:
        check_positive("LocalSecant", "cut", cut, least=1e-6, most=1.0)
        self.prior = Identity() if prior is None else prior
        self.cut = cut

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """A d + R^T (D D^T)^+ D d."""
        changes, residuals, inverse = self._fit(pairs)
        coordinates = torch.einsum("qrn,prn->prq", changes, d.double())
        coordinates = torch.einsum("rqs,prs->prq", inverse, coordinates)
        return self.prior.apply(pairs, d) + torch.einsum("qrm,prq->prm", residuals, coordinates).to(d.dtype)

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """A^T v + D^T (D D^T)^+ R v."""
        changes, residuals, inverse = self._fit(pairs)
        slopes = torch.einsum("qrm,rm->rq", residuals, cotangent.double())
        slopes = torch.einsum("rqs,rs->rq", inverse, slopes)
        found = torch.einsum("qrn,rq->rn", changes, slopes)
        return self.prior.vjp(pairs, cotangent) + found.to(cotangent.dtype)

    def predict(self, pairs: CallPairs) -> Tensor:
        """Each probe from the others of its call and row; a single one from the prior."""
        # Nothing is kept that could have been learned before: the one probe is left out instead.
        predicted = [
            self.apply(pairs.without(probe), pairs.d[probe : probe + 1]) for probe in range(len(pairs.d))
        ]
        return torch.cat(predicted)

    def observe(self, pairs: CallPairs) -> None:
        """Only the prior learns."""
        self.prior.observe(pairs)

    def state_dict(self) -> dict[str, Any]:
        """The prior's."""
        return {"prior": self.prior.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The prior's."""
        self.prior.load_state_dict(state["prior"])

    def _fit(self, pairs: CallPairs) -> tuple[Tensor, Tensor, Tensor]:
        """D `(probes, rows, size_in)`, R `(probes, rows, size_out)`, (D D^T)^+ `(rows, probes, probes)`."""
        changes, responses = pairs.unit()
        residuals = torch.where(pairs.valid[..., None], responses - self.prior.apply(pairs, changes), 0.0)
        changes = changes.double()
        gram = torch.einsum("qrn,srn->rqs", changes, changes)
        inverse = torch.linalg.pinv(gram, rtol=self.cut**2, hermitian=True)  # squares of singular values
        return changes, residuals.double(), inverse

    def __repr__(self) -> str:
        """With its prior."""
        return f"LocalSecant({self.prior!r})"
