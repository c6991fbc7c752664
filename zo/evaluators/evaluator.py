"""`Evaluator`: from perturbations to perturbed losses; and the rule for rows and queries that failed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zo.errors import ObjectiveError
from zo.evaluators.memory import queries_within
from zo.objective import Objective
from zo.parameters import Parameters
from zo.perturbation import Perturbation


@dataclass(frozen=True)
class Problem:
    """What the queries of one step share.

    Attributes:
        network, parameters, objective, batch, rows: what is evaluated: chosen parameters, rows of the batch.
        queries: of the whole step, from which follows what preparations pay; 0 where no one knows.
    """

    network: nn.Module
    parameters: Parameters
    objective: Objective
    batch: Any
    rows: int
    queries: int = 0


class Unservable(ObjectiveError):
    """An evaluator cannot serve this network and objective; another can."""


class Evaluator(ABC):
    """A way to compute perturbed losses. Weights, buffers and gradients are left as they were.

    Attributes:
        agreement: how far it may be off `loop`, as a fraction of a change of the loss; for one that is
            coarse on purpose, of the largest change among the rows.
        coarse: whether it is.
    """

    agreement: float = 2e-3
    coarse: bool = False

    @abstractmethod
    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """Losses of each variant on each row, `(queries, rows)`, without a graph.

        Called under `no_grad`, and with the random state that the base evaluation started from.
        """

    def changes(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> Tensor:
        """Changes of the losses of each variant on each row, `(queries, rows)`: what `LossGradient` asks for.

        The difference of the losses, unless an evaluator knows it without subtracting them. Called as
        `losses` is.

        Args:
            problem: one step's.
            perturbation: the queries.
            base: losses of the base, `(rows,)`; what is returned for rows where it is NaN means nothing.
        """
        return self.losses(problem, perturbation) - base

    def bytes_per_query(self, problem: Problem, perturbation: Perturbation, base: int) -> int:
        """Memory that one more query in a chunk takes; 0 where queries follow each other.

        Args:
            problem: as for `losses`.
            perturbation: of the kind that chunks will be of.
            base: what the evaluation of the base took at its peak, in bytes.
        """
        return 0

    def within(self, problem: Problem, perturbation: Perturbation, base: int, memory: int) -> int:
        """How many queries may be given at once, where no one has named a number.

        Args:
            problem: as for `losses`.
            perturbation: of the kind that they will be of.
            base: what the evaluation of the base took at its peak, in bytes.
            memory: bytes that they may take.
        """
        each = self.bytes_per_query(problem, perturbation, base)
        return queries_within(memory, each, problem.parameters.tensors[0].device)

    def sees_all_reads(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> bool:
        """Whether the objective reads weights only where this evaluator shows it the variants'.

        Costs a query or two where it has to be found out.

        Args:
            problem: as for `losses`.
            perturbation: some that reaches every tensor.
            base: losses of the base, `(rows,)`.
        """
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on in the same way; most evaluators keep nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most have nothing to load
        """Go on where `state_dict` was taken."""

    def take_queries(self) -> int:
        """Queries beyond those of the plan since this was last asked, such as those of a check."""
        return 0


def in_passes(evaluate: Callable[[Perturbation], Tensor], perturbation: Perturbation, size: int) -> Tensor:
    """What an evaluation of a perturbation gives, of at most `size` queries at a time; 0 for all at once."""
    size = size or len(perturbation)
    starts = range(0, len(perturbation), size)
    return torch.cat([evaluate(perturbation.part(start, start + size)) for start in starts])


def differences(base: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean change of the loss of each query over the rows that survived in the base; see `mean_changes`.

    Args:
        base: `(rows,)`, NaN where a row failed.
        perturbed: `(queries, rows)`, likewise.
    """
    return mean_changes(base, perturbed - base)


def mean_changes(base: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean change of each query over the rows that survived in the base.

    A query in which a further row failed is dropped: averaged over fewer rows than the base it would
    bend the gradient (see "Failed queries" in ARCHITECTURE.md).

    Args:
        base: `(rows,)` losses, NaN where a row failed.
        changes: `(queries, rows)` of the losses, NaN where a row failed in a query.

    Returns:
        `(queries,)` float64 in units of the loss, zero where dropped, and `(queries,)` bool, False
        where dropped; both on the CPU.
    """
    change = changes[:, torch.isfinite(base)]
    valid = torch.isfinite(change).all(dim=1)
    mean = change.double().mean(dim=1)
    return torch.where(valid, mean, 0.0).cpu(), valid.cpu()
