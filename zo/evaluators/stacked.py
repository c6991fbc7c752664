"""`Stacked`: P variants on P x B rows in one pass, so a batched solver steps them all together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from blackbox import BudgetError
from zo.batches import repeat, tensors
from zo.evaluators.evaluator import Changes, Evaluator, Problem
from zo.evaluators.forwards import replaced
from zo.evaluators.hidden_weights import hidden
from zo.evaluators.loop import Loop
from zo.evaluators.replacements import copied_bytes, replacements, size_in_bytes
from zo.evaluators.sentinel import left_out, refuse_shifted, with_sentinel
from zo.evaluators.state import Snapshot
from zo.objective import losses, uncompiled
from zo.perturbation import Perturbation

SLACK = 2  # for what kernels need beside the tensors that they give: unfolded convolutions, say


@dataclass(frozen=True)
class Stacked(Evaluator):
    """All variants of a chunk in one call of the objective.

    The layers that hold changed weights are given, for that call, a forward that knows the variants:
    for single changed weights of the layers in `point_rules` one without copies, for all else
    `torch.func` over copies of the layer. The objective itself sees an ordinary network and a batch of
    P x B rows, so it may call black boxes, and as often as it likes.

    In each chunk one more variant moves nothing; if its losses are not those of the base, the chunk is
    refused (see `sentinel`). A chunk of one query is evaluated as `Loop` does.
    """

    sentinels: ClassVar[int] = 1

    def begin(self, problem: Problem, base: Tensor) -> Changes:
        """Keep what each chunk must leave as it was; see `Evaluator.begin`."""
        start = Snapshot(problem.network, problem.written)
        one = Loop().begin(problem, base)

        def changes(perturbation: Perturbation) -> Tensor:
            if len(perturbation) == 1:
                return one(perturbation)
            queries = with_sentinel(perturbation)
            run = partial(stacked_losses, problem, queries, start)
            found = run() - base
            problem.tally.queries += 1
            refuse_shifted(problem, queries, base, found, run)
            return left_out(found)

        return changes

    def bytes_per_query(self, problem: Problem, perturbation: Perturbation, base: int) -> int:
        """See `Evaluator.bytes_per_query`."""
        batch = sum(size_in_bytes(tensor) for tensor in tensors(problem.batch))
        return batch + SLACK * base + copied_bytes(problem, perturbation)

    def sees_all_reads(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> bool:
        """See `Evaluator.sees_all_reads`."""
        modules: set[nn.Module] = set()
        for query in range(len(perturbation)):  # one at a time: a layer on copies has one a query
            modules.update(replacements(problem, perturbation.part(query, query + 1)))
        lost = torch.isfinite(base)
        for _ in range(2):  # a row that fails by chance does not fail twice
            problem.tally.queries += 1
            lost = lost & ~torch.isfinite(_without_weights(problem, modules))
            if not lost.any():
                return True
        return False


def stacked_losses(problem: Problem, perturbation: Perturbation, start: Snapshot) -> Tensor:
    """Losses `(queries, rows)` of all variants by one call of the objective; `start` is restored after it."""
    variants = len(perturbation)
    try:
        with replaced(replacements(problem, perturbation)), uncompiled():
            batch = repeat(problem.batch, variants)
            stacked = losses(problem.objective, problem.network, batch, variants * problem.rows)
    finally:
        start.restore()
    return stacked.view(variants, problem.rows)


def _without_weights(problem: Problem, modules: set[nn.Module]) -> Tensor:
    """Losses `(rows,)` with the weights hidden outside the modules; all NaN where that is an error."""
    start = Snapshot(problem.network, problem.written)
    try:
        with hidden(problem.parameters.tensors, modules), uncompiled():
            return losses(problem.objective, problem.network, problem.batch, problem.rows)
    except BudgetError:
        raise
    except Exception:  # a black box that refuses NaN, say; with the weights in sight it did not
        return torch.full((problem.rows,), float("nan"))
    finally:
        start.restore()
