"""`Evaluator`: from perturbations to changes of the losses; and the rule for rows and queries that failed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from zo.batches import Batch
from zo.errors import ObjectiveError
from zo.evaluators.generators import Draws
from zo.evaluators.state import Inside, Snapshot
from zo.objective import Objective
from zo.parameters import Parameters
from zo.perturbation import Perturbation

# From some queries to the changes of the losses, (queries, rows), without a graph; what it gives for rows
# that failed in the base means nothing.
Changes: TypeAlias = Callable[[Perturbation], Tensor]


@dataclass
class Tally:
    """Counts the queries of a step that are beyond its plan.

    Attributes:
        queries: How many perturbed objectives checks have evaluated.
    """

    queries: int = 0


@dataclass(frozen=True)
class Step:
    """The common part of the queries of one step.

    Attributes:
        network: The network, in the state that the base evaluation started from.
        parameters: The perturbed parameters of the network.
        objective: `objective(network, batch) -> Tensor (rows,)`.
        batch: Any nesting of tensors with rows first; None for a closure.
        rows: The rows of the batch.
        written: Parameters, by name, that the network's own forward writes, as a momentum encoder's does;
            evaluators put them back after each query.
        inside: The contents of attributes that the base evaluation wrote to, and lists and dicts that it left
            alone; see `Snapshot`. None where that is not known.
        tally: Counts queries that are beyond the plan.
        number: The number of the step, from 0.
        stack: The most queries that may run on rows of their own at once; None for a whole chunk.
        draws: The draws of the base, which each query has to repeat; None where they are not known.
    """

    network: nn.Module
    parameters: Parameters
    objective: Objective
    batch: Batch
    rows: int
    written: Mapping[str, Tensor] = field(default_factory=dict)
    inside: Inside | None = None
    tally: Tally = field(default_factory=Tally, compare=False)
    number: int = 0
    stack: int | None = None
    draws: Draws | None = field(default=None, compare=False)

    def snapshot(self) -> Snapshot:
        """Snapshot the network as it is now; each query of the step has to leave it as the base did."""
        return Snapshot(self.network, self.written, self.inside)


class Unservable(ObjectiveError):
    """An evaluator cannot serve this network and objective, or gives wrong numbers there."""


class Evaluator(ABC):
    """A way to compute the changes of the losses, without state: the same numbers wherever it is asked.

    Weights, buffers and gradients are left as they were. Subclasses are frozen dataclasses of settings.

    Attributes:
        agreement: How far a change may be off that of `loop`, as a fraction of the change.
        sentinels: How many queries of its own it adds to each chunk.
        needs_batch: Whether a closure without a batch cannot be evaluated; where it finds itself wrong
            `stacked` takes over before `loop` does.
        most_on_gpu: The most queries of a chunk on a GPU, for one whose queries start at their own layer, and
            which finds room itself; None for one that runs the whole network for each.
    """

    agreement: ClassVar[float] = 2e-3
    sentinels: ClassVar[int] = 0
    needs_batch: ClassVar[bool] = False
    most_on_gpu: ClassVar[int | None] = None

    @classmethod
    def by_default(cls, objective: Objective) -> bool:
        """Say whether "auto" takes it first for such an objective."""
        return False

    @abstractmethod
    def begin(self, step: Step, base: Tensor) -> Changes:
        """Prepare a step, and give the function that evaluates its queries.

        Called under `no_grad`, as is the function, and with the random state that the base evaluation
        started from. Both leave that state as it was.

        Args:
            step: The step, with its network, objective and batch.
            base: The losses of the base, `(rows,)`, NaN where a row failed.

        Raises:
            Unservable: this evaluator cannot serve the step. The function may raise it too.
        """

    def changes(self, step: Step, perturbation: Perturbation, base: Tensor) -> Tensor:
        """Changes of the losses for some queries of a step, `(queries, rows)`: `begin`, and what it gives."""
        return self.begin(step, base)(perturbation)

    def serves(self, kind: type) -> bool:
        """Say whether it takes perturbations of a kind, `Coordinates` or `Directions`."""
        return True

    def bytes_per_query(self, step: Step, perturbation: Perturbation, base: int) -> int:
        """Memory that one more query in a chunk takes; 0 where queries follow each other.

        Args:
            step: A step of the network and objective that are to be evaluated.
            perturbation: A perturbation of the same kind as the chunks'.
            base: The peak memory of the base evaluation, in bytes.
        """
        return 0


def mean_changes(base: Tensor, changes: Tensor) -> Tensor:
    """Mean change of each query over the rows that survived in the base.

    A query in which a further row failed is dropped: averaged over fewer rows than the base it would
    bend the gradient (see docs/concepts/failed_rows.md).

    Args:
        base: `(rows,)` losses, NaN where a row failed.
        changes: `(queries, rows)` of the losses, NaN where a row failed in a query.

    Returns:
        `(queries,)` float64 in units of the loss, NaN where dropped, where the changes are.
    """
    survived = torch.isfinite(base)
    mean = torch.where(survived, changes.double(), 0.0).sum(dim=1) / survived.sum()
    return torch.where(torch.isfinite(mean), mean, torch.nan)
