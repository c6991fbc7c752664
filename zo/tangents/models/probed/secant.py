"""`SecantTangent`: the derivative at one call and row, from the probes of just that call and row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_number
from zo.tangents.models.probed.behind import Behind
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.tangent import IdentityTangent, Linearised, Tangent

CUT = 3e-3  # of the largest singular value


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

    def __init__(self, prior: Tangent | None = None, cut: float = CUT) -> None:
        check_number("SecantTangent", "cut", cut, least=1e-6, most=1.0)
        self.prior = IdentityTangent() if prior is None else prior
        self.cut = cut

    def at(self, rows: CallPairs) -> SecantAt:
        """A, corrected by the probes of these rows."""
        return SecantAt(rows, self.prior.at(rows), self.cut)

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """As `at`, with A at all calls at once."""
        priors = self.prior.at_each(calls)
        return [SecantAt(rows, prior, self.cut) for rows, prior in zip(calls, priors, strict=True)]

    def expect(self, rows: CallPairs) -> Tensor | None:
        """Predict each probe from the others of its call and row; a single one from the prior."""
        return self.at(rows).left_out() if len(rows.d) else self.prior.expect(rows)

    def state_dict(self) -> dict[str, Any]:
        """The prior's state."""
        return {"prior": self.prior.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the prior's state."""
        self.prior.load_state_dict(state["prior"])

    def __repr__(self) -> str:
        """The prior."""
        return f"SecantTangent({self.prior!r})"


class SecantAt(Behind):
    """What the probes of a call's rows say of J, beside a prior.

    Args:
        rows: the rows of the call.
        prior: A at these rows.
        cut: see `SecantTangent`.
    """

    def __init__(self, rows: CallPairs, prior: Linearised, cut: float) -> None:
        super().__init__(rows, prior)
        self._cut = cut

    def push(self, d: Tensor) -> Tensor:
        """A d + R^T (D D^T)^+ D d."""
        changes, _, residuals = self._residuals
        standard = d.double() * reciprocal(self.rows.d_scale.double())
        coordinates = torch.einsum("qrn,prn->prq", changes, standard)
        coordinates = torch.einsum("rqs,prs->prq", self._inverse, coordinates)
        return self.prior.push(d) + torch.einsum("qrm,prq->prm", residuals, coordinates).to(d.dtype)

    def pull(self, v: Tensor) -> Tensor:
        """A^T v + D^T (D D^T)^+ R v."""
        changes, _, residuals = self._residuals
        slopes = torch.einsum("qrm,rm->rq", residuals, v.double())
        slopes = torch.einsum("rqs,rs->rq", self._inverse, slopes)
        correction = torch.einsum("qrn,rq->rn", changes, slopes) * reciprocal(self.rows.d_scale.double())
        return self.prior.pull(v) + correction.to(v.dtype)

    def left_out(self) -> Tensor:
        """The response to each probe by the others of its row: `(probes, rows, size_out)`."""
        # Nothing is kept that could have been learned before: the one probe is left out instead.
        changes, expectation, residuals = self._residuals
        gram = _gram(changes)
        predictions = []
        for probe in range(len(changes)):
            others = [other for other in range(len(changes)) if other != probe]
            inverse = _inverse(gram[:, others][:, :, others], self._cut)
            coordinates = torch.einsum("rqs,rs->rq", inverse, gram[:, others, probe])
            predictions.append(
                expectation[probe] + torch.einsum("qrm,rq->rm", residuals[others], coordinates)
            )
        rows = self.rows
        lengths = (rows.d * reciprocal(rows.d_scale)).norm(dim=-1, keepdim=True)
        return torch.stack(predictions).to(rows.d.dtype) * lengths if predictions else expectation

    @cached_property
    def _residuals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Changes in standard units, D, what the prior says to them, and what it leaves, R.

        `(probes, rows, size)` each; zero where not valid.
        """
        changes, responses = self.rows.unit()
        expectation = self.prior.push(changes)
        residuals = torch.where(self.rows.valid[..., None], responses - expectation, 0.0)
        standard = changes.double() * reciprocal(self.rows.d_scale.double())
        return standard, expectation, residuals.double()

    @cached_property
    def _inverse(self) -> Tensor:
        """(D D^T)^+, `(rows, probes, probes)`."""
        return _inverse(_gram(self._residuals[0]), self._cut)


def _inverse(gram: Tensor, cut: float) -> Tensor:
    # squares of singular values
    return torch.linalg.pinv(gram, rtol=cut**2, hermitian=True)


def _gram(changes: Tensor) -> Tensor:
    """D D^T of each row: `(probes, rows, size)` to `(rows, probes, probes)`."""
    return torch.einsum("qrn,srn->rqs", changes, changes)
