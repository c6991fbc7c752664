"""`Estimator`: the base of all gradient estimators; it plans and reduces, and evaluates nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor

from blackbox.checks import check_number
from zo.draws import Key
from zo.parameters import Parameters
from zo.perturbation import Perturbations

Planned = TypeVar("Planned", bound=Perturbations)


class Estimator(ABC, Generic[Planned]):
    """A way to make a gradient out of differences of the loss."""

    @abstractmethod
    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """Return the cost of a step before it runs: perturbed objectives, the base not counted."""

    @abstractmethod
    def plan(self, parameters: Parameters, key: Key) -> Planned:
        """Called once a step, before any query. Draws depend on the key alone."""

    @abstractmethod
    def reduce(self, planned: Planned, differences: Tensor, valid: Tensor) -> Tensor:
        """Called once a step, after the last query.

        Args:
            planned: the perturbations that `plan` gave.
            differences: `(queries,)` float64, loss of each variant minus the base's.
            valid: `(queries,)` bool, False where a query failed; its difference means nothing.

        Returns:
            The flat gradient `(size,)`, in the parameters' dtype.
        """


def check_mu(owner: str, mu: float) -> None:
    """Refuse a smoothing parameter that is no step at all."""
    check_number(
        owner, "mu", mu, above=0, mend="In float32 try 1e-4 for forward and 1e-3 for central differences."
    )


def check_sparsity(owner: str, name: str, value: float) -> None:
    """Refuse a sparsity that is none or leaves nothing."""
    check_number(
        owner, name, value, least=0, below=1, mend="A sparsity of 0.9 leaves a tenth of the weights."
    )
