"""The training loop of every method of every task: it validates, keeps the best weights, and resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from blackbox import BlackBoxFunction, Ledger, Parallel
from blackbox.errors import RowFailedError
from blackbox.failures import noted
from blackbox.notices import Notices, warn
from tasks.errors import CheckpointError, CheckpointWarning, ConfigurationError, StoppedInside, WorkersError
from tasks.folder import stamp
from tasks.folder.journal import Journal
from tasks.folder.run import Run
from tasks.listeners.callbacks import Listeners
from tasks.listeners.progress import IN_BOXES, INTERVAL, make_progress
from tasks.problem.silence import Silence
from tasks.problem.trained import TrainingOutcome
from tasks.rows.kept_answers import LEAST, KeptAnswers
from tasks.rows.run_ledger import calls_noted, recall
from tasks.rows.stacks import evaluated, stack
from tasks.rows.tally import RowTally, everywhere
from tasks.training.course import Course
from tasks.training.interruption import StopRequest
from tasks.training.stage import Stage, Stateful
from tasks.training.windows import WindowLosses
from tasks.workers import group
from zo.batches import Batch
from zo.errors import FailedBatchError, FailedQueriesError, RanksError
from zo.tangents.models.lessons import listening

TOLD = 1 / 3  # share of the steps by which they change, from which on it is said


def train(
    run: Run,
    stage: str,
    *,
    steps: int,
    step: Callable[[int], Mapping[str, float]],
    state: Mapping[str, Stateful],
    model: str,
    validate: Callable[[], float | Tensor | WindowLosses | None] | None = None,
    validate_every: int = 10,
    progress: Silence | None = None,
    boxes: Sequence[BlackBoxFunction] = (),
    begin: Callable[[], None] | None = None,
    course: Course | None = None,
) -> TrainingOutcome:
    """Train a stage of a run to its end, from wherever it was left.

    A stage that was finished before is loaded, not trained. One that was cut short goes on from its
    last checkpoint to the bits that it would have had without the break, as long as `step` and
    `validate` draw from nothing but torch's global CPU generator and generators that they key by
    (seed, step). In `metrics.jsonl` step k means: after k optimiser steps.

    Args:
        run: the run that gets metrics and checkpoints.
        stage: the name of the stage in the run: "seed-0/zo-sol".
        steps: optimiser steps of the whole stage.
        step: does optimiser step i (from 0) and returns its metrics, `loss` among them; `queries`
            and `rows`, cumulative, are shown as progress.
        state: everything that a step changes, by name.
        model: the entry of `state` whose best weights are kept.
        validate: loss on validation data, lower is better: the mean, or one for each row, `(rows,)`, NaN
            where it failed; weights are then compared on the rows that came back. Called before the first
            step, every `validate_every` steps and at the end. The weights of the lowest finite one are
            loaded into the model at the end. None: the last weights are kept. It gives None where there is
            nothing to judge by yet. Of `WindowLosses`, which are of other rows each time, see
            `Stage.validated`.
        validate_every: optimiser steps between validations; each validation leaves a checkpoint. Where these
            steps take longer than some seconds there are more checkpoints, in at most a twentieth of the
            time.
        progress: the progress that the user sees; a bar in a terminal, lines elsewhere, if None.
        boxes: the black boxes that steps call. Their counts in steps, in all processes, are kept in the
            outcome's ledger and, as `rows`, in the metrics. Failed rows are shown, and rows of an interrupted
            step are counted where it goes on.
        begin: a function that is called once, before the first validation; its rows count as validation's.
        course: decides how many of the steps are taken, where time may run out; all of them if None. If it
            decides by a clock, it is among `state`.

    So a kill loses a few seconds, or what cannot be divided: a step, or a validation. Steps of a gradient of
    `state` that has a `journal` (`zo.LossGradient`) lose no finished query of more than a few seconds ago.

    Raises:
        NonFiniteLossError: a step's loss was NaN or infinite.
        FailedBatchError: all rows of a batch failed, and, with the steps right before, ten rows in a row.
            Until then such a step changes nothing: its loss is logged as NaN, and it counts in `lost_steps`.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1 stopped the stage; the step at hand was finished and a
            checkpoint written, or its finished queries were. Where rows failed meanwhile, the last checkpoint
            counts, since the signal may have ended their programs; but no checkpoint counts so twice.
        CheckpointError: the stage's checkpoint cannot be read, or does not fit `state`.
        StorageError: the disk did not take metrics or a checkpoint; the one before is as it was.

    Warns:
        CheckpointWarning: the checkpoint was made with other versions.
    """
    if steps < 1 or validate_every < 1:
        raise ConfigurationError(
            f"{stage}: expected steps and validate_every of at least 1, got {steps} and {validate_every}. "
            "Correct the configuration."
        )
    if model not in state:
        raise ConfigurationError(f"{stage}: expected model to be one of {sorted(state)}, got {model!r}.")
    carried = Stage(run, stage, steps, state, model)
    if (run.finished or run.here.only_read) and not carried.saved:
        raise CheckpointError(
            f"{run.path}: expected the checkpoint of {stage}, which the {'finished ' * run.finished}run had, "
            "got none. Copy checkpoints/ back, or start a new run: nothing is trained where one is only read."
        )
    with run.noting(), run.here.notes.at(stage, 0):
        work = _StageAtWork(run, carried, boxes)
        if carried.restore():
            recall(group.journal_folder(run.path), boxes, stage)
            return carried.outcome
        course = Course(steps) if course is None else course
        with work.going_on(course.steps, state, progress):
            if not carried.restored and begin is not None:
                work.prepare(begin)
            if not carried.restored or carried.pending:
                work.validate(validate)
                work.save_where_due()
            while (step_number := carried.outcome.step + 1) <= course.steps:
                work.stop_where_asked()
                work.take(step)
                changed = work.changes(course)
                due = step_number == course.steps or step_number % validate_every == 0
                if due:
                    work.validate(validate)
                if step_number < course.steps:
                    work.save_where_due(anyway=changed or due)
                    work.forget_queries()
            work.finish()
    return carried.outcome


class Gradient(Protocol):
    """The source of `.grad`: one of `zo`, `AutogradGradient`, or one's own."""

    def backward(self, batch: Batch, /) -> Tensor:
        """Add the gradient at a batch to `.grad`; the mean loss, detached."""
        ...

    def metrics(self) -> dict[str, float]:
        """Plain numbers for the log; `queries` and `dropped` are shown."""
        ...

    def state_dict(self) -> Any:
        """Save it for the checkpoint."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Restore it from the checkpoint."""
        ...


class _StageAtWork:
    """The work on a stage in this process: all that a step and a validation take beside the stage's state.

    Rows are noted as they are run. Answers of boxes and finished queries are kept until a checkpoint has
    their results. Signals, callbacks and the progress are attended to.

    Args:
        run: The run that the stage is part of.
        stage: The stage, with its state from step to step.
        boxes: The black boxes that steps call.
    """

    def __init__(self, run: Run, stage: Stage, boxes: Sequence[BlackBoxFunction]) -> None:
        self._run, self._stage, self._boxes = run, stage, boxes
        self._name = stage.outcome.stage
        self._answers = KeptAnswers(f"{self._name}.steps")
        self._tally = RowTally(boxes, self._answers.recalled)
        self._listeners = Listeners(run)
        self._looked, self._notices = perf_counter(), Notices()
        # the seconds of workers pass at the same time
        self._pooled = any(isinstance(part, Parallel) for box in boxes for part in stack(evaluated(box)))

    @contextmanager
    def going_on(self, steps: int, state: Mapping[str, Stateful], progress: Silence | None) -> Iterator[None]:
        """A block in which the stage trains, from where it was left."""
        stage, folder = self._stage, group.journal_folder(self._run.path)
        stage.steps = steps
        with make_progress() if progress is None else nullcontext(progress) as self._progress:
            self._answers.attach_to(self._run)
            if stage.restored:
                self._forget_answers(pending=stage.pending)
            self._progress.begin(self._name, steps, done=stage.outcome.step)
            self._listeners.tell("on_start", self._run, self._name, stage.outcome.step, steps)
            try:
                with (
                    StopRequest() as self._stop,
                    calls_noted(folder, self._boxes, stage=self._name),
                    self._stopped_before(),
                    _journaled(self._run, self._name, state, self._tally) as self._journal,
                    listening(self._progress.lesson),
                ):
                    self._journal.stop = self._may_stop_inside
                    self._journal.tears = self._tears
                    yield
            finally:
                self._progress.end()

    def prepare(self, begin: Callable[[], None]) -> None:
        """Do the work before the first validation, once."""
        with self._remembered(0), self._judging():
            begin()

    def validate(self, validate: Callable[[], float | Tensor | WindowLosses | None] | None) -> None:
        """Judge the weights at hand, and keep them if they are the best so far."""
        if validate is None:
            return
        step = self._stage.outcome.step
        self._say_changed_files()
        if self._stage.due:  # what was done before is not lost if the validation is cut short
            self._save(pending=True)
        with self._remembered(2 * step), self._judging():
            losses = validate()
        if losses is None:
            return
        value = self._stage.validated(losses)
        self._listeners.tell("on_validation", self._name, step, value)

    def take(self, step: Callable[[int], Mapping[str, float]]) -> None:
        """Take an optimiser step, log it, show it, and tell the callbacks."""
        stage, outcome = self._stage, self._stage.outcome
        self._run.here.notes.step = outcome.step + 1
        self._journal.begin(outcome.step)
        started = perf_counter()
        failed_batch: FailedBatchError | None = None
        try:
            with noted() as causes, self._tally.afresh(), self._remembered(2 * outcome.step + 1, LEAST):
                ledger_before = self._tally.copy()
                try:
                    metrics = step(outcome.step)
                except FailedBatchError as error:  # of all processes at once
                    failed_batch = error
                ledger = self._tally.since(ledger_before)
                ledger.add(self._journal.used)
        except StoppedInside:
            raise stage.interrupted(inside=True) from None
        seconds = perf_counter() - started
        if self._boxes:
            cause = ledger.first_failure or (causes[0].sentence() if causes else None)
            spent = everywhere(replace(ledger, first_failure=cause))
            self._stop_if_torn(spent)
            stage.spent(spent)
        if failed_batch is not None:
            metrics = stage.without_gradient(failed_batch)
        if self._boxes:
            metrics = {"rows": outcome.ledger.rows_run, **metrics}
        stage.stepped(metrics, seconds)
        logged = outcome.metrics
        self._listeners.tell("on_step", self._name, outcome.step, {**logged, "seconds": outcome.seconds})
        failures = outcome.ledger.failures()
        figures: dict[str, float] = {f"failed_{kind}": count for kind, count in failures.items()}
        if self._boxes and not self._pooled:
            figures[IN_BOXES] = self._tally.copy().seconds
        if failures and self._notices.first("failed"):
            first = (outcome.ledger.first_failure or "not known").rstrip(".")
            self._progress.say(f"{self._name}: rows fail. The first: {first}.")
        self._progress.update(outcome.step, {**logged, **figures})
        if perf_counter() - self._looked >= INTERVAL:
            self._say_changed_files()

    def changes(self, course: Course) -> bool:
        """Say whether the budget leaves fewer or more steps from here on."""
        outcome, steps = self._stage.outcome, course.steps
        seconds = group.of_all(outcome.seconds)[0] if course.watches_time else outcome.seconds
        if not course.changes(outcome.step, seconds):  # by one clock in all processes
            return False
        self._stage.steps = course.steps
        self._progress.resize(course.steps)
        if abs(course.steps - steps) < TOLD * steps:
            return True
        change = "more" if course.steps < steps else "less"
        self._progress.say(
            f"{self._name}: steps take {change} than was thought; the budget is enough for {course.steps:,} "
            f"in place of {steps:,}, and the learning rate ends with them."
        )
        return True

    def _say_changed_files(self) -> None:
        """Say which programs and files of the boxes have changed since the run began or was resumed."""
        self._looked = perf_counter()
        names = self._run.here.watched.changed() if group.rank() == 0 else []
        if names:
            warn(
                f"{self._name}, after step {self._stage.outcome.step}: expected the programs and files of "
                f"its box to stay as they are while the run goes on, but {', '.join(names)} changed. The "
                "result is of both. If that was not meant, put back what it was and begin a new run.",
                CheckpointWarning,
            )

    def stop_where_asked(self) -> None:
        """Leave a checkpoint and stop, where the user or the system asked for it."""
        if group.any_of(self._stop.requested):  # a signal reaches processes at different steps
            self._save()
            raise self._stage.interrupted()

    def _stop_if_torn(self, spent: Ledger) -> None:
        """Stop without a checkpoint, where rows of all processes failed while a stop was asked.

        A scheduler's signal reaches the programs of boxes too. What they left open would count as failed. But
        once for each checkpoint: a box that fails by itself would never get further.
        """
        if not spent.rows_failed or not group.any_of(self._stop.requested) or group.any_of(self._stage.torn):
            return
        self._stage.note_torn()
        self._answers.write()
        raise self._stage.interrupted(torn=True)

    def _tears(self) -> bool:
        """Say whether to leave out queries of which rows failed: where they may have by a signal."""
        if not self._stop.requested or self._stage.torn:
            return False
        self._stage.note_torn()
        return True

    def save_where_due(self, *, anyway: bool = False) -> None:
        """Write a checkpoint, where enough was done since the last one."""
        if anyway or self._stage.due:
            self._save()

    def forget_queries(self) -> None:
        """The step is over: its queries are kept no longer, where a checkpoint has it."""
        self._journal.end(covered=self._stage.covered)

    def finish(self) -> None:
        """Take the best weights, and leave nothing behind but the checkpoint."""
        self._stage.finish()
        outcome = self._stage.outcome
        if outcome.step and outcome.best_validation is not None and outcome.best_step == 0:
            self._progress.say(
                f"{self._name}: no validation was better than that of the start, whose weights are kept. "
                "See the units of what enters and leaves the network, and the learning rate."
            )
        self._answers.end()
        self._listeners.tell("on_end", self._name, self._stage.outcome)
        self._journal.end()
        if group.any_of(self._stop.requested):
            raise self._stage.interrupted()

    def _save(self, *, pending: bool = False) -> None:
        self._stage.save(pending=pending)
        self._forget_answers(pending=pending)

    def _forget_answers(self, *, pending: bool) -> None:
        """A checkpoint has what came of the answers so far, but for a validation that is pending."""
        self._answers.end(2 * self._stage.outcome.step - pending)

    @contextmanager
    def _remembered(self, place: int, least: float = 0.0) -> Iterator[None]:
        """A block in which boxes are asked only for rows that they have not answered in this place before.

        Args:
            place: 2 k for the validation after k steps, 2 k + 1 for the step that follows it.
            least: The first seconds of a call, in which no answers are kept.
        """
        self._answers.place = place
        with self._answers.used(None, lambda box: not self._tally.counts(box), least):
            yield

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """A block whose rows are counted apart from those of steps, recalled answers included."""
        ledger_before = self._tally.copy()
        yield
        spent = everywhere(self._tally.since(ledger_before))
        self._stop_if_torn(spent)
        self._stage.outcome.judging.add(spent)

    def _may_stop_inside(self) -> bool:
        """Say whether to stop inside a step: only if it is all that happened since the last checkpoint.

        And if the process is alone: others would wait for the rest of the step.
        """
        alone = group.process_group() is None
        return alone and self._stop.requested and self._stage.nothing_since_saved

    @contextmanager
    def _stopped_before(self) -> Iterator[None]:
        """A stop makes no failure of processes that do not answer, nor of rows whose programs ended."""
        try:
            yield
        except (WorkersError, RanksError) as error:
            if self._stop.requested:
                raise self._stage.interrupted() from error
            raise
        except (FailedQueriesError, RowFailedError) as error:
            if self._stop.requested:
                self._answers.write()
                raise self._stage.interrupted(torn=True) from error
            raise


@contextmanager
def _journaled(run: Run, stage: str, state: Mapping[str, Stateful], tally: RowTally) -> Iterator[Journal]:
    """The stage's journal, given to the gradients of `state` that have none."""
    folder = group.journal_folder(run.path)
    journal = Journal(folder, stage, tally, rank=group.rank(), of=stamp.code(run))
    gradients = [part for part in state.values() if isinstance(part, _Journaled) and part.journal is None]
    for gradient in gradients:
        gradient.journal = journal
    try:
        yield journal
    finally:
        for gradient in gradients:
            gradient.journal = None


@runtime_checkable
class _Journaled(Protocol):
    """A gradient that looks in a journal for queries of the step at hand."""

    journal: Any
