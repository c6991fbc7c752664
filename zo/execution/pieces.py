"""The pieces of a step: chunks of queries by number, evaluated or looked up in a journal, and all as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox import BlackBoxError
from blackbox.failures import noted
from zo.batches import sent
from zo.evaluators.evaluator import Unservable, mean_changes
from zo.evaluators.loop import Loop
from zo.execution.base import Base
from zo.execution.evaluator_check import refuse_off
from zo.execution.evaluator_choice import Serving, StepEvaluators
from zo.execution.shared_rows import apart
from zo.execution.step_journal import StepJournal
from zo.perturbation import Perturbation, Perturbations


@dataclass(frozen=True)
class Pieces:
    """The queries of a step, cut into chunks; piece n has queries n * chunk to (n + 1) * chunk - 1.

    Attributes:
        base: The base evaluation.
        plan: All queries of the step.
        chunk: How many are a piece.
        journal: The journal of the step; None without one.
        drawn: The query of the plan that is evaluated by `loop` too.
        max_dropped: The fraction of a piece's queries that may fail for the journal to keep it.
    """

    base: Base
    plan: Perturbations
    chunk: int
    journal: StepJournal | None
    drawn: int = 0
    max_dropped: float = 1.0

    def __len__(self) -> int:
        return -(-self.plan.queries // self.chunk)

    def queries(self, number: int) -> Perturbation:
        """The queries of a piece."""
        start = number * self.chunk
        return self.plan.chunk(start, min(start + self.chunk, self.plan.queries))

    def drawn_in(self, number: int) -> int | None:
        """The place of the drawn query in a piece of several; None if it is in another one."""
        piece, place = divmod(self.drawn, self.chunk)
        return place if piece == number and len(self.queries(number)) > 1 else None

    def known(self, serving: Serving) -> dict[int, Tensor]:
        """The numbers of the pieces that an earlier process has left in the journal."""
        if self.journal is None:
            return {}
        names = {_name(number, serving): number for number in range(len(self))}
        return {names[name]: numbers for name, numbers in self.journal.known(names).items()}


@dataclass(frozen=True)
class Evaluated:
    """The result of evaluating some pieces.

    Attributes:
        numbers: The mean change of the loss by each query, `(queries,)`, NaN where it failed; by piece.
        checks: Queries that the step has taken beside the plan's so far.
        fault: Why the evaluator cannot go on; None if it can.
    """

    numbers: Mapping[int, Tensor]
    checks: int = 0
    fault: str | None = None

    @property
    def queries(self) -> int:
        """The number of the plan's queries in them."""
        return sum(map(len, self.numbers.values()))


def evaluate(pieces: Pieces, serving: Serving, numbers: Iterable[int]) -> Evaluated:
    """Evaluate some pieces of a step, but for those that are in its journal by now.

    Args:
        pieces: All of the step's.
        serving: The evaluators that serve.
        numbers: The numbers of the pieces to evaluate.
    """
    evaluated: dict[int, Tensor] = {}
    doubted: list[int] = []
    begun, fault = StepEvaluators(serving, pieces.base), None
    try:
        with apart(), pieces.base.intact():
            for number in numbers:
                evaluated[number], sure = _numbers(pieces, begun, number)
                if not sure:
                    doubted.append(number)
            evaluated = _on_the_cpu(evaluated)
            for number in doubted:
                evaluated[number] = _with_lost(pieces, number, evaluated[number])
    except Unservable as error:
        fault = f"cannot serve: {error}"
    return Evaluated(_on_the_cpu(evaluated), pieces.base.step.tally.queries, fault)


def joined(count: int, parts: Sequence[Evaluated]) -> tuple[Tensor, Tensor]:
    """The numbers of all pieces in their order.

    Args:
        count: How many pieces there are.
        parts: The parts of several processes, or of a journal.

    Returns:
        Differences `(queries,)` float64, zero where a query is dropped, and `(queries,)` bool, False there.
    """
    numbers = {number: values for part in parts for number, values in part.numbers.items()}
    whole = torch.cat([numbers[number] for number in range(count)])
    valid = torch.isfinite(whole)
    return torch.where(valid, whole, 0.0), valid


def _name(number: int, serving: Serving) -> str:
    """Return the journal's name of a piece: other evaluators give other bits."""
    return f"piece {number} by {serving.state_dict() or 'loop'}"


def _numbers(pieces: Pieces, begun: StepEvaluators, number: int) -> tuple[Tensor, bool]:
    """The numbers of a piece: those in the journal, or by its evaluator, and then kept there.

    Returns:
        The numbers `(queries,)`, and whether those that are NaN are so for `loop` too: a GPU is not waited
        for here.
    """
    base, journal, name = pieces.base, pieces.journal, _name(number, begun.serving)
    if journal is not None and (entries := journal.known([name])):
        return entries[name], True
    earlier_queries = base.step.tally.queries
    changes, sure = _changes(pieces, begun, number)
    numbers = mean_changes(base.losses, changes)
    if journal is None:
        return numbers, sure
    numbers = numbers.cpu()
    if not sure:
        numbers = _with_lost(pieces, number, numbers)
    if int(numbers.isnan().sum()) <= pieces.max_dropped * len(numbers):
        base.refuse_written()  # what is kept is not evaluated again
        journal.keep(name, numbers, base.step.tally.queries - earlier_queries)
    return numbers, True


def _changes(pieces: Pieces, begun: StepEvaluators, number: int) -> tuple[Tensor, bool]:
    """Changes of the losses `(queries, rows)` by a piece, the drawn query's held against `loop`.

    Beside them, whether rows that were lost are lost by `loop` too, or by a box.
    """
    base, queries, place = pieces.base, pieces.queries(number), pieces.drawn_in(number)
    evaluator, changes = begun.for_queries(queries)
    try:
        if isinstance(evaluator, Loop):
            return changes(queries), True
        with noted() as causes:
            if place is None:
                changed = changes(queries)
            else:
                changed = refuse_off(evaluator, base.step, base.losses, changes, queries, place)
        return changed, bool(causes)
    except Unservable:
        base.step.tally.queries += len(queries)  # they count for nothing
        raise
    except BlackBoxError:
        raise
    except Exception as error:  # of a shape, say, that no chunk had when it was checked
        if isinstance(evaluator, Loop):
            raise
        base.step.tally.queries += len(queries)
        raise Unservable(f"it could not run ({type(error).__name__}: {error})") from error


def _with_lost(pieces: Pieces, number: int, numbers: Tensor) -> Tensor:
    """The numbers of a piece, those that are NaN by `loop`, for a fast evaluator may lose what has one.

    What is infinite on the way has no difference: a query that moves a mask of minus infinity, say.
    """
    places = torch.nonzero(numbers.isnan()).flatten().tolist()
    if not places:
        return numbers
    base, queries = pieces.base, pieces.queries(number)
    base.step.tally.queries += len(places)
    loop, numbers = Loop().begin(base.step, base.losses), numbers.clone()
    for place in places:
        numbers[place] = mean_changes(base.losses, loop(queries.part(place, place + 1)))[0]
    return numbers


def _on_the_cpu(numbers: dict[int, Tensor]) -> dict[int, Tensor]:
    """Move all numbers to the CPU at once: each separate copy would leave a GPU without work."""
    device = next((values.device for values in numbers.values() if values.device.type != "cpu"), None)
    if device is None:
        return numbers
    lengths = [len(values) for values in numbers.values()]
    whole = torch.cat([sent(values, device) for values in numbers.values()]).cpu()
    return dict(zip(numbers, whole.split(lengths), strict=True))
