"""The trial of a problem before it trains: the rows of one evaluation of its objective, and their time.

The rows are known without running one, as the boxes answer with zeros; the time is that of a few evaluations.
Data may be made meanwhile, whose rows count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction, Ledger, Parallel
from blackbox.adapters import CommandLine
from blackbox.calls import intercepted, rows_run_by, runner
from blackbox.errors import SessionError, TryAgain
from blackbox.failures import Failure, Outcome
from blackbox.words import counted
from blackbox_coupling import PACKAGES
from tasks.problem.method import Method
from tasks.problem.problem import Problem
from tasks.rows.binding import Bound
from tasks.rows.stacks import stack
from tasks.rows.tally import RowTally
from tasks.workers import group
from zo.batches import Batch, count_rows, tensors
from zo.errors import FailedBatchError
from zo.objective import evaluated, per_row
from zo.tangents.population.members import FEWEST
from zo.tangents.population.updates import ROWS, updates_of

TRIES = 2  # evaluations of the objective, of which the quicker counts: the first one warms up
OF_CODE = NameError, AttributeError, TypeError, LookupError, ImportError, NotImplementedError
MANY = 10  # rows with one error of another type, of which no other batch would know better


@dataclass(frozen=True)
class Sizes:
    """The rows of one evaluation, by purpose.

    Attributes:
        objective: Box rows of one evaluation of the objective on a batch; without boxes the batch's own.
        batch: Rows of data in a training batch.
        validation: Box rows of one evaluation of the objective on the validation data.
        test: Box rows of one evaluation of it on the test data.
    """

    objective: int
    batch: int
    validation: int
    test: int


@dataclass(frozen=True)
class Asked:
    """The cost of a problem, as it says itself or as a trial shows it.

    Attributes:
        made: Rows that were run to make the data.
        sizes: How many rows are asked for at once; None where `instead` says why.
        instead: Sentences on the cost where rows are not known.
        raised: Whether they are not known since the objective raised, on a batch and zeros from its boxes.
    """

    made: int
    sizes: Sizes | None = None
    instead: tuple[str, ...] = ()
    raised: bool = False


@dataclass(frozen=True)
class Rehearsal:
    """Seconds that a method with a learned model computes beside the boxes, as a few steps took them.

    Attributes:
        first: The first step, with what is learned before it and in it.
        step: Each step after that, without replays.
        replay: A replay.
        replays: How many follow a step, where it is trust that decides as many as are usual.
        networks: How many take all of these, each at a rate of its own.
        most_replays: How many may follow a step.
        update: A step of a population's surrogate; 0 where it has none.
        update_of_many: The same on as many rows as it has where a training has many.
        rows: The rows of a batch, where boxes are asked once for each; else 0.
    """

    first: float
    step: float
    replay: float = 0.0
    replays: int = 0
    networks: int = 1
    most_replays: int = 0
    update: float = 0.0
    update_of_many: float = 0.0
    rows: int = 0

    def seconds(self, steps: int) -> float:
        """Return the seconds of a training of so many steps."""
        return self.without(steps) + steps * self.further(self.replays)

    def most(self, steps: int) -> float:
        """Return the seconds of a training in which as many replays follow each step as may."""
        return self.without(steps) + steps * self.further(max(self.replays, self.most_replays))

    def without(self, steps: int) -> float:
        """Return the seconds of a training without replays."""
        updates, rows = updates_of(steps, self.rows)
        surrogate = 0.0
        if steps > FEWEST:  # it rests before
            surrogate = updates * (self.update if rows == ROWS else self.update_of_many)
        return self.first + (steps - 1) * self.step + surrogate

    def further(self, replays: int) -> float:
        """Seconds behind a step; all networks but one take its window too."""
        windows = self.networks - 1 if replays else 0
        return (self.networks * replays + windows) * self.replay


def asked(bound: Bound, methods: Mapping[str, Method], seeds: int) -> Asked:
    """Ask a problem for the cost of so many seeds, or for the rows of one evaluation of its objective.

    Before that methods refuse problems that they cannot train, and the problem's own answers are made: their
    rows count as rows of data.

    Args:
        bound: The problem in the run.
        methods: The methods that will be trained, by name.
        seeds: How many seeds.

    Raises:
        ConfigurationError: A method cannot train with these settings, or these boxes.
    """
    problem, ledger = bound.problem, bound.ledger
    for method in methods.values():  # a network may ask for data, and these for rows
        if method.check is not None:
            with torch.random.fork_rng(devices=()):
                method.check(problem)
    if problem.config.prefit and any(method.learns_answers for method in methods.values()):
        problem.known_answers()
    cost = problem.cost(seeds)
    if cost is not None:
        instead = ("Cost:", *(f"  {line}" for line in cost))
        return Asked(ledger.rows_of_data(), instead=instead)
    with torch.random.fork_rng(devices=()):  # data may ask the boxes, which here still answer themselves
        network, batch = problem.network().to(problem.config.device), problem.training_batch(0, 0)
    size = count_rows(batch)  # refuses what is no batch
    try:
        rows = _box_rows(problem, network, batch) if problem.boxes else size
    except Exception as error:  # whatever the objective does with zeros; a true fault shows in the first step
        raised = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        why = f"the objective, on zeros from its box, raised {raised}."
        if isinstance(error, SessionError):  # which is in words
            why = str(error)
        instead = (f"Cost: not known before the first step: {why}",)
        return Asked(ledger.rows_of_data(), instead=instead, raised=True)
    with torch.random.fork_rng(devices=()):
        held_out = [
            _held_out_rows(problem, network, batch, rows / size, data)
            for data in (problem.data.validation, problem.data.test)
        ]
    return Asked(ledger.rows_of_data(), Sizes(rows, size, *held_out))


def _box_rows(problem: Problem, network: nn.Module, batch: Batch) -> int:
    """Count the rows that one evaluation of the objective asks of the boxes, which answer with zeros."""
    rows = 0

    def answer(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        nonlocal rows
        first = arrays[0]
        leading = tuple(first.shape[: first.ndim - len(box.inputs[0].shape)])
        rows += int(torch.Size(leading).numel())
        free = next((array.dtype for array in arrays if array.is_floating_point()), torch.get_default_dtype())
        zeros = [
            torch.zeros(*leading, *spec.shape, dtype=spec.torch_dtype or free, device=first.device)
            for spec in box.outputs
        ]
        return zeros[0] if len(zeros) == 1 else tuple(zeros)

    with torch.random.fork_rng(devices=()), torch.no_grad(), intercepted(answer):
        problem.objective(network, batch)
    return rows


def _held_out_rows(problem: Problem, network: nn.Module, batch: Batch, for_each: float, data: Batch) -> int:
    """Count the rows that one evaluation of the objective on held-out data asks of the boxes.

    As many for each row as in training, `for_each`, unless rows are larger or smaller than there: a longer
    run has more calls.
    """
    if data is None:
        return 0
    shapes = [[tensor.shape[1:] for tensor in tensors(one)] for one in (batch, data)]
    if problem.boxes and shapes[0] != shapes[1]:
        try:
            return _box_rows(problem, network, data)
        except Exception:  # whatever an objective of training batches does with it
            pass
    return round(for_each * count_rows(data))


@dataclass(frozen=True)
class Trial:
    """A few evaluations of the objective on the first batch, for their time.

    Attributes:
        second: Seconds that a row takes; None where none was run.
        evaluation: Seconds that an evaluation of the objective takes; None where none was run.
        back: Losses of the batch that were finite in the last one; None where that is not known.
        spent: The boxes' counts.
        unread: Whether no loss came back since no row's output files could be read: a wrong name or shape.
        answers: The boxes' answers in the last evaluation, call by call, where they are kept.
        fault: The error of a box's own code in every row, with its traceback; None where rows may differ.
        handed: The rows whose answers the first step of a training takes over, and does not ask again.
    """

    second: float | None = None
    evaluation: float | None = None
    back: int | None = None
    spent: Ledger = field(default_factory=Ledger)
    unread: bool = False
    answers: tuple[Outcome, ...] = ()
    fault: Exception | None = None
    handed: int = 0

    @property
    def aside(self) -> int:
        """The rows that were run for nothing but their time."""
        return self.spent.rows_run - self.handed

    def seconds(self, rows: float, sizes: Sizes) -> float:
        """Return the seconds of so many box rows, by an evaluation of the objective; 0 where none ran."""
        return (self.evaluation or 0.0) * rows / sizes.objective

    def refuse_unread(self) -> None:
        """Stop where all of the first batch failed for a reason that the next batch shares.

        Raises:
            FailedBatchError: All rows failed; the message has the cause.
            Exception: The error of the box's own code, as it was raised there.
        """
        if self.fault is not None:
            self.fault.add_note(
                "So it ended in every row of the first batch. Nothing was trained: mend the box, or the data "
                "that it was given."
            )
            raise self.fault
        if self.unread:
            rows = self.spent.rows_failed
            raise FailedBatchError(
                f"First batch: expected numbers in the files that the program left, got none in any of "
                f"{counted(rows, 'row')}. The first cause: {(self.spent.first_failure or '').rstrip('.')}. "
                "Nothing was trained: correct the box's output files and shapes, or what the program writes.",
                rows=rows,
            )


def timed(problem: Problem, *, seed: int = 0, keep: bool = False, tries: int = TRIES) -> Trial:
    """Time evaluations, of which the quicker counts: a second at most, or until a pool has its workers.

    Args:
        problem: Its boxes are asked.
        seed: The seed whose first weights and first batch are taken.
        keep: Whether to keep what they answer.
        tries: How many evaluations there are at most.

    Raises:
        ObjectiveError: The objective gives something else than a loss for each row: no training could begin.
    """
    boxes = list(problem.boxes.values())
    tally, best, quickest, begun = RowTally(boxes), math.inf, math.inf, perf_counter()
    first = tally.copy()
    # two processes that import torch take fifteen seconds where others compute too
    limit = 30.0 if any(isinstance(part, Parallel) for box in boxes for part in stack(box)) else 1.0
    losses: Tensor | None = None
    answers, unread, outer = list[Outcome](), False, runner()
    fault: Exception | None = None

    def run(box: BlackBoxFunction, rows: tuple[Tensor, ...]) -> Outcome:
        nonlocal fault
        with rows_run_by(None):
            outcome = box.run_rows(rows) if outer is None else outer(box, rows)
            fault = _fault(box, rows, outcome) if fault is None else fault
        if keep:
            answers.append(outcome)
        return outcome

    with torch.random.fork_rng(devices=()), torch.no_grad(), rows_run_by(run):
        torch.manual_seed(seed)
        network, batch = problem.network().to(problem.config.device), problem.training_batch(seed, 0)
        for _ in range(tries):
            answers.clear()
            ledger_before, started = tally.copy(), perf_counter()
            result = evaluated(problem.objective, network, batch, count_rows(batch))
            losses = per_row(result, count_rows(batch))
            passed = perf_counter() - started
            quickest = min(quickest, passed)
            best = min(best, passed / (tally.since(ledger_before).rows_run or math.nan))  # NaN is never less
            unread = group.any_of(_unread(boxes, losses, tally.since(first)))
            if unread or group.any_of(fault is not None):
                break
            if group.any_of(perf_counter() - begun > limit):  # their clocks differ, what they ask must not
                break
            limit = 1.0  # of two evaluations at least where the first one starts a pool
    back = None if losses is None else int(losses.isfinite().sum())
    ledger = tally.since(first)
    # a refusal takes no row's time
    unanswered = ledger.rows_failed and ledger.rows_failed == ledger.rows_asked
    second, evaluation = (None if unanswered or some == math.inf else some for some in (best, quickest))
    return Trial(second, evaluation, back, ledger, unread, tuple(answers), fault)


def _unread(boxes: Sequence[BlackBoxFunction], losses: Tensor, spent: Ledger) -> bool:
    """Say whether programs ran, but left nothing that their boxes could read; one row alone may be odd."""
    programs = all(isinstance(stack(box)[-1], CommandLine) for box in boxes)
    back = bool(losses.isfinite().any())
    more_causes = set(spent.causes) - {ValueError.__name__, FileNotFoundError.__name__}
    return programs and not back and not more_causes and spent.rows_failed == spent.rows_run >= 2


def _fault(box: BlackBoxFunction, rows: tuple[Tensor, ...], outcome: Outcome) -> Exception | None:
    """Return the error that the user's own code raises whatever the row; None where it may depend on the row.

    An error of a type that only code is the reason of, or of any with the same words in ten rows or more.
    Servers, disks and time limits may be better in a moment. One row is asked again, for the traceback.
    """
    failed = [outcome.failed[row] for row in sorted(outcome.failed)]
    errors = [why.error for why in failed if why.failure is Failure.RAISED and why.error is not None]
    count = len(rows[0])
    if not errors or len(errors) < count or any(isinstance(error, OSError | TryAgain) for error in errors):
        return None
    words = {(type(error), str(error)) for error in errors}
    if not all(isinstance(error, OF_CODE) for error in errors) and (len(words) > 1 or count < MANY):
        return None
    inner = stack(box)[-1]
    is_ours = type(inner).__module__.partition(".")[0] in PACKAGES
    if is_ours or not inner.settable:
        return None
    policy, inner.failures = inner.failures, "raise"
    try:
        again = inner.run_rows(tuple(tensor[:1] for tensor in rows))
    finally:
        inner.failures = policy
    error = again.failed[0].error if again.failed else None
    return error if (type(error), str(error)) in words else None
