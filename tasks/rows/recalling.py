"""Rows of one box, answered from kept answers where there are some, and else run, in parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from blackbox import BlackBoxFunction, Budgeted
from blackbox.failures import Outcome
from blackbox.running import ends_early, rows_of, unanswered, write_rows
from blackbox.wrappers.identity import joined, name_of, parts
from blackbox.wrappers.parallel import blocks_reported
from tasks.rows.stacks import divisible, stack
from zo.batches import bits

if TYPE_CHECKING:
    from tasks.rows.kept_answers import KeptAnswers

LONG = 0.5  # seconds that rows may take which are run together, where they can be run apart
Before: TypeAlias = Callable[[BlackBoxFunction, int], None]


class Attributes:
    """The attributes of boxes, not what is inside of them: what others than the boxes have assigned.

    What a box assigns itself while it runs, as a counter of its calls, makes no other box of it.
    """

    def __init__(self) -> None:
        self._attributes: dict[int, dict[str, object]] = {}  # by the box's id, as its last call left them
        self._assigned: list[tuple[BlackBoxFunction, str]] = []

    def left(self, boxes: Sequence[BlackBoxFunction]) -> None:
        """Take in the attributes that a call has left."""
        self._attributes |= {id(box): dict(vars(box)) for box in boxes}

    def assigned(self, boxes: Sequence[BlackBoxFunction]) -> Sequence[tuple[BlackBoxFunction, str]]:
        """Return all that was ever assigned between calls, those of these boxes since their last one too."""
        for box in boxes:
            now = vars(box)
            earlier = self._attributes.get(id(box), now)
            names = [name for name in now.keys() | earlier.keys() if now.get(name) is not earlier.get(name)]
            self._assigned += [(box, name) for name in names]
        self.left(boxes)
        return self._assigned


class Recalling:
    """Runs the rows of a box whose answers are not kept, in parts that a kill may come between."""

    def __init__(self, box: BlackBoxFunction, answers: KeptAnswers) -> None:
        self._box, self._answers = box, answers
        self._block, self._tells = divisible(box)
        self._short = False  # the last call was
        self._started, self._least = 0.0, 0.0  # of the call at hand
        self._again: dict[str, deque[str]] = {}  # the keys of its parts that are run, by their first ones
        self._parts: dict[str, str] | None = None  # what the box is known by
        self._assignments = 0  # of the assignments that the answers know

    def answer(
        self,
        inputs: tuple[Tensor, ...],
        before: Before | None,
        aside: Callable[[BlackBoxFunction], bool] | None,
        least: float,
    ) -> tuple[Outcome, bool]:
        """Answer from what is kept, and run the rest: as many rows together as take about a second.

        Returns:
            The outcome, and whether any of it was kept: it says nothing of the box as it is now.
        """
        self._look()
        try:
            return self._answer(inputs, before, aside, least)
        finally:
            self._answers.attributes.left(stack(self._box))

    def _answer(
        self,
        inputs: tuple[Tensor, ...],
        before: Before | None,
        aside: Callable[[BlackBoxFunction], bool] | None,
        least: float,
    ) -> tuple[Outcome, bool]:
        rows, answers, box = len(inputs[0]), self._answers, self._box
        self._started, self._least = perf_counter(), least
        self._again.clear()
        if self._short and not answers.any_known:
            outcome = box.run_rows(inputs)
            self._short = perf_counter() - self._started < least
            return outcome, False
        block = min(self._block or rows, rows)
        parts = [list(range(at, min(at + block, rows))) for at in range(0, rows, block)]
        outcome, open_parts = unanswered(box, inputs), parts
        if answers.any_known:
            open_parts = []
            for part in parts:
                first = key = self._key(rows_of(inputs, part))
                while (entry := answers.known(key)) is not None and _failed(entry[0]):
                    key += "+"  # it was asked again, and kept as that
                if entry is None or not _fit(entry[0], outcome, part):
                    open_parts.append(part)
                    self._again.setdefault(first, deque()).append(key)
                else:
                    write_rows(outcome, part, Outcome(entry[0]))
                    if aside is None or not aside(box):
                        answers.recalled.count(rows_run=entry[1])
        recalled = len(open_parts) < len(parts)
        # a call that a budget does not allow is to be refused before any of its rows is run
        bounded = any(isinstance(part, Budgeted) and part.rows_left < rows for part in stack(box))
        together = len(open_parts) if bounded or self._tells else 1
        while open_parts and not ends_early(box, outcome):
            some, open_parts, started = open_parts[:together], open_parts[together:], perf_counter()
            here = [row for part in some for row in part]
            answered = self._run(rows_of(inputs, here), some, before)
            if len(here) == rows:
                outcome = answered
                break
            write_rows(outcome, here, answered)
            together = 2 * together if perf_counter() - started < LONG else 1
        self._short = perf_counter() - self._started < least
        return outcome, recalled

    def _run(
        self, inputs: tuple[Tensor, ...], parts: Sequence[Sequence[int]], before: Before | None
    ) -> Outcome:
        """Run rows, and keep the answers to parts without a failed row, and a place of each other one."""
        if before is not None:
            before(self._box, self._box.rows_to_run(inputs))
        if self._tells:
            with blocks_reported(self._keep):
                return self._box.run_rows(inputs)
        ledger, at = self._box.ledger, 0
        run_before = ledger.rows_run
        outcome = self._box.run_rows(inputs)
        places, lengths, whole = list[list[int]](), list[int](), list[int]()
        for part in parts:
            here = list(range(at, at + len(part)))
            at += len(part)
            places.append(here)
            lengths.append(0 if outcome.failed.keys() & set(here) else len(here))
            whole += here[: lengths[-1]]
        run = ledger.rows_run - run_before
        if self._wanted:
            keys = [self._key_to_keep(rows_of(inputs, here)) for here in places]
            extra = run - at if len(whole) == at else 0  # run again, or cached
            self._answers.keep(keys, lengths, rows_of(outcome.outputs, whole), extra)
        return outcome

    def _look(self) -> None:
        """See what the box is before it runs, and what others than boxes have assigned since a last call."""
        boxes = stack(self._box)
        assigned = self._answers.attributes.assigned(boxes)
        changed = {name for box, name in assigned[self._assignments :] if any(box is part for part in boxes)}
        self._assignments = len(assigned)
        if self._parts is None:
            self._parts = parts(self._box, _left_out)
        elif changed:
            names = {"identity", ".box", *(f".{key}" for key in changed)}
            unchanged = {name: words for name, words in self._parts.items() if name not in names}
            self._parts = unchanged | parts(self._box, _left_out, names)

    @property
    def _name(self) -> bytes:
        """The digest that distinguishes the box's answers from those of others."""
        assert self._parts is not None
        return blake2b(joined(self._parts).encode(), digest_size=16).digest()

    def _keep(self, inputs: tuple[Tensor, ...], outcome: Outcome) -> None:
        """Keep the answers to rows that a worker has sent back, or their place."""
        if self._wanted:
            whole = [] if outcome.failed else list(range(len(inputs[0])))
            self._answers.keep([self._key_to_keep(inputs)], [len(whole)], rows_of(outcome.outputs, whole), 0)

    @property
    def _wanted(self) -> bool:
        return not self._answers.full and perf_counter() - self._started >= self._least

    def _key_to_keep(self, inputs: tuple[Tensor, ...]) -> str:
        first = self._key(inputs)
        return self._again[first].popleft() if self._again.get(first) else first

    def _key(self, inputs: tuple[Tensor, ...]) -> str:
        digest = blake2b(self._name, digest_size=20)
        for tensor in inputs:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(bits(tensor.cpu()).numpy().data)
        return digest.hexdigest()


def _left_out(value: object) -> str:
    """Words for what cannot be described."""
    return name_of(type(value))


def _failed(outputs: tuple[Tensor, ...]) -> bool:
    """Say whether these are the place of a part of which a row failed: outputs of no row."""
    return any(output.shape[:1] == (0,) for output in outputs)


def _fit(outputs: tuple[Tensor, ...], whole: Outcome, rows: Sequence[int]) -> bool:
    """Say whether outputs from a file, which may be anyone's, have the shapes of these rows of a box."""
    shapes = [(len(rows), *output.shape[1:]) for output in whole.outputs]
    return [tuple(output.shape) for output in outputs] == shapes
