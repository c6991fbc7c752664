"""`Behind`: what a tangent says that stands on a prior and learns the changes that this one leaves."""

from __future__ import annotations

from torch import Tensor

from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import Linearised


class Behind(Linearised):
    """A tangent that stands on a prior, whose values are the prior's.

    Args:
        rows: the rows of the call.
        prior: the prior at these rows.
    """

    def __init__(self, rows: CallPairs, prior: Linearised) -> None:
        super().__init__(rows)
        self.prior = prior

    @property
    def values(self) -> Tensor | None:
        """The prior's."""
        return self.prior.values
