"""`SecantTangent`: the derivative at one call and row, from the probes of just that call and row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_number
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.tangent import IdentityTangent, Tangent


class SecantTangent(Tangent):
    """J = A + R^T (D D^T)^+ D, D a row's changes of length one, R the responses that the prior A leaves.

    It follows any dependence on the state, and is exact, to the truncation of mu, once the probes span
    what the parameters can reach of the box's input space; in all other directions it is its prior. It
    needs many probes and keeps nothing between steps. Changes are compared in standard units (see `Units`).

    Cost of a call: a q x q eigenproblem for each row and q products with vectors; q the probes.

    Args:
        prior: A; the identity if left out.
        cut: singular values of D below this fraction of the largest count as zero.

    Raises:
        ConfigurationError: cut out of range.
    """

    def __init__(self, prior: Tangent | None = None, cut: float = 3e-3) -> None:
        check_number("SecantTangent", "cut", cut, least=1e-6, most=1.0)
        self.prior = IdentityTangent() if prior is None else prior
        self.cut = cut

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """A d + R^T (D D^T)^+ D d."""
        changes, residuals, inverse = self._fit(pairs)
        standard = d.double() * reciprocal(pairs.d_scale.double())
        coordinates = torch.einsum("qrn,prn->prq", changes, standard)
        coordinates = torch.einsum("rqs,prs->prq", inverse, coordinates)
        return self.prior.apply(pairs, d) + torch.einsum("qrm,prq->prm", residuals, coordinates).to(d.dtype)

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """A^T v + D^T (D D^T)^+ R v."""
        changes, residuals, inverse = self._fit(pairs)
        slopes = torch.einsum("qrm,rm->rq", residuals, cotangent.double())
        slopes = torch.einsum("rqs,rs->rq", inverse, slopes)
        correction = torch.einsum("qrn,rq->rn", changes, slopes) * reciprocal(pairs.d_scale.double())
        return self.prior.vjp(pairs, cotangent) + correction.to(cotangent.dtype)

    def predict(self, pairs: CallPairs) -> Tensor:
        """Predict each probe from the others of its call and row; a single one from the prior."""
        # Nothing is kept that could have been learned before: the one probe is left out instead.
        changes, expected, residuals = self._residuals(pairs)
        gram = _gram(changes)
        predicted = []
        for probe in range(len(changes)):
            others = [other for other in range(len(changes)) if other != probe]
            inverse = self._inverse(gram[:, others][:, :, others])
            coordinates = torch.einsum("rqs,rs->rq", inverse, gram[:, others, probe])
            predicted.append(expected[probe] + torch.einsum("qrm,rq->rm", residuals[others], coordinates))
        lengths = (pairs.d * reciprocal(pairs.d_scale)).norm(dim=-1, keepdim=True)
        return torch.stack(predicted).to(pairs.d.dtype) * lengths if predicted else expected

    def observe(self, pairs: CallPairs) -> None:
        """Let the prior learn; nothing else is kept between steps."""
        self.prior.observe(pairs)

    def state_dict(self) -> dict[str, Any]:
        """The prior's state."""
        return {"prior": self.prior.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the prior's state."""
        self.prior.load_state_dict(state["prior"])

    def _fit(self, pairs: CallPairs) -> tuple[Tensor, Tensor, Tensor]:
        """D `(probes, rows, size_in)`, R `(probes, rows, size_out)`, (D D^T)^+ `(rows, probes, probes)`."""
        changes, _, residuals = self._residuals(pairs)
        return changes, residuals, self._inverse(_gram(changes))

    def _residuals(self, pairs: CallPairs) -> tuple[Tensor, Tensor, Tensor]:
        """Changes in standard units, what the prior says to them and what it leaves; zero where not valid."""
        changes, responses = pairs.unit()
        expected = self.prior.apply(pairs, changes)
        residuals = torch.where(pairs.valid[..., None], responses - expected, 0.0)
        standard = changes.double() * reciprocal(pairs.d_scale.double())
        return standard, expected, residuals.double()

    def _inverse(self, gram: Tensor) -> Tensor:
        # squares of singular values
        return torch.linalg.pinv(gram, rtol=self.cut**2, hermitian=True)

    def __repr__(self) -> str:
        """The prior."""
        return f"SecantTangent({self.prior!r})"


def _gram(changes: Tensor) -> Tensor:
    """D D^T of each row: `(probes, rows, size)` to `(rows, probes, probes)`."""
    return torch.einsum("qrn,srn->rqs", changes, changes)
