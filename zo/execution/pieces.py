"""The pieces of a step: chunks of queries by number, this process's share of them, and all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from blackbox import BlackBoxError
from zo.batches import sent
from zo.evaluators.evaluator import Changes, Unservable, mean_changes
from zo.evaluators.loop import Loop
from zo.execution.base import Base
from zo.execution.check import refuse_off
from zo.execution.choice import Serving
from zo.execution.journal import Page
from zo.execution.ranks import Ranks
from zo.execution.shared_rows import apart
from zo.perturbation import Perturbation, Perturbations
from zo.slopes import Doubt

T = TypeVar("T")


@dataclass(frozen=True)
class Pieces:
    """The queries of a step, cut into chunks; piece n has queries n * chunk to (n + 1) * chunk - 1.

    Attributes:
        base: The base evaluation.
        plan: All queries.
        chunk: How many run together.
        serving: What evaluates them.
        page: The journal of the step; None without a journal.
        marks: What must be the same in all processes, by name.
        drawn: The query of the plan that is evaluated by `loop` too.
        max_dropped: The fraction of a piece's queries that may fail for the journal to keep it.
    """

    base: Base
    plan: Perturbations
    chunk: int
    serving: Serving
    page: Page | None
    marks: Mapping[str, int]
    drawn: int = 0
    max_dropped: float = 1.0

    def marked(self, stage: str) -> dict[str, int | str]:
        """What must be the same in all processes that meet in an exchange of the step, by name."""
        return {**self.marks, "stage of the step": stage}

    def __len__(self) -> int:
        return -(-self.plan.queries // self.chunk)

    def queries(self, number: int) -> Perturbation:
        """The queries of a piece."""
        start = number * self.chunk
        return self.plan.chunk(start, min(start + self.chunk, self.plan.queries))

    def is_drawn(self, number: int) -> bool:
        """Whether the drawn query is in a piece."""
        return number == self.drawn // self.chunk

    def name(self, number: int, *, by_loop: bool = False) -> str:
        """What the journal calls a piece: other evaluators give other bits."""
        return f"piece {number} by {'loop' if by_loop else self.serving.state_dict()}"

    def known(self) -> dict[int, Tensor]:
        """The numbers of the pieces that an earlier process has left in the journal."""
        if self.page is None:
            return {}
        names = {self.name(number): number for number in range(len(self))}
        return {names[name]: numbers for name, numbers in self.page.known(names).items()}


@dataclass(frozen=True)
class Opening:
    """What is known of a step before its pieces are evaluated.

    Attributes:
        pieces: Those of the step; None if it has not begun.
        known: Numbers of pieces from the journal.
        noise: How far two evaluations of the base were apart; None if it was evaluated once.
        by_loop: Whether `loop` evaluates all pieces, since what served before was found to be wrong.
    """

    pieces: Pieces | None = None
    known: Mapping[int, Tensor] = field(default_factory=dict)
    noise: float | None = None
    by_loop: bool = False


@dataclass(frozen=True)
class Share:
    """What one process tells the others of a step.

    Attributes:
        marks: See `Pieces.marked`.
        numbers: Those that it evaluated, by the number of the piece.
        checks: Queries that it evaluated beside the plan's.
        fault: Why its evaluator cannot go on; None if it can.
        serving: What evaluates the queries, as its state; None if this process does not decide it.
        noise: See `Opening`.
        doubt: About the slopes of the step; None if there is none, or if this process does not judge them.
    """

    marks: Mapping[str, int | str]
    numbers: Mapping[int, Tensor] = field(default_factory=dict)
    checks: int = 0
    fault: str | None = None
    serving: Mapping[str, str] | None = None
    noise: float | None = None
    doubt: Doubt | None = None


def evaluate_share(pieces: Pieces, opening: Opening, ranks: Ranks, *, first_alone: bool) -> Share:
    """Evaluate the pieces of this process, of those that are not known; see `dealt`.

    Args:
        pieces: All of the step's.
        opening: What is known of them.
        ranks: Who shares them.
        first_alone: Whether the first process takes all of them.
    """
    left = [number for number in range(len(pieces)) if number not in opening.known]
    if not first_alone:
        left = dealt(left, ranks.rank, ranks.size)
    elif ranks.rank > 0:
        left = []
    base, page, fault = pieces.base, pieces.page, None
    found: dict[int, Tensor] = {}
    begun: dict[int, Changes] = {}
    tally = base.step.tally
    running = 0  # queries that count for nothing if they show that their evaluator is wrong
    try:
        with apart(), base.intact():
            for number in left:
                name = pieces.name(number, by_loop=opening.by_loop)
                kept = {} if page is None else page.known([name])
                if kept:
                    found[number] = kept[name]
                    continue
                spent, queries = tally.queries, pieces.queries(number)
                evaluator = pieces.serving.serves(queries, base.step, by_loop=opening.by_loop)
                if id(evaluator) not in begun:
                    begun[id(evaluator)] = evaluator.begin(base.step, base.losses)
                changes, running = begun[id(evaluator)], len(queries)
                try:
                    if pieces.is_drawn(number) and not isinstance(evaluator, Loop) and len(queries) > 1:
                        chosen = pieces.drawn % pieces.chunk
                        changed = refuse_off(evaluator, base.step, base.losses, changes, queries, chosen)
                    else:
                        changed = changes(queries)
                except BlackBoxError:
                    raise
                except Exception as error:  # of a shape, say, that no chunk had when it was checked
                    if isinstance(evaluator, Loop):
                        raise
                    raise Unservable(f"it could not run ({type(error).__name__}: {error})") from error
                numbers, running = mean_changes(base.losses, changed), 0
                found[number] = numbers if page is None else numbers.cpu()
                if page is not None and int(found[number].isnan().sum()) <= pieces.max_dropped * len(numbers):
                    base.refuse_written()  # what is kept is not evaluated again
                    page.keep(name, found[number], tally.queries - spent)
    except Unservable as error:
        fault = f"cannot serve: {error}"
        tally.queries += running
    found = _on_the_cpu(found)
    return Share(pieces.marked("by loop" if opening.by_loop else "pieces"), found, tally.queries, fault)


def _on_the_cpu(found: dict[int, Tensor]) -> dict[int, Tensor]:
    """All numbers, at once: each time that some are asked for, a GPU runs out of what it has to do."""
    if not found:
        return found
    lengths = [len(numbers) for numbers in found.values()]
    device = next((numbers.device for numbers in found.values() if numbers.device.type != "cpu"), None)
    if device is None:
        return found
    whole = torch.cat([sent(numbers, device) for numbers in found.values()]).cpu()
    return dict(zip(found, whole.split(lengths), strict=True))


def dealt(numbers: Sequence[T], rank: int, size: int) -> list[T]:
    """What a process gets when they are dealt back and forth: to 0, 1, 1, 0, 0, 1, ... of two.

    Queries of early layers cost more, and stand first: dealt in one direction, the first process would have
    most to do in each round.
    """
    rounds = (divmod(place, size) for place in range(len(numbers)))
    to = [seat if number % 2 == 0 else size - 1 - seat for number, seat in rounds]
    return [each for each, whose in zip(numbers, to, strict=True) if whose == rank]


def joined(count: int, parts: Sequence[Mapping[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """The numbers of all pieces in their order.

    Returns:
        Differences `(queries,)` float64, zero where a query is dropped, and `(queries,)` bool, False there.
    """
    numbers = {number: values for part in parts for number, values in part.items()}
    whole = torch.cat([numbers[number] for number in range(count)])
    valid = torch.isfinite(whole)
    return torch.where(valid, whole, 0.0), valid
