"""The training loop of every method of every task: it validates, keeps the best weights, and resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.failures import noted
from tasks.callbacks import Told
from tasks.errors import CheckpointError, ConfigurationError, StoppedInside, WorkersError
from tasks.folder import stamp
from tasks.folder.answers import LEAST, Answers
from tasks.folder.journal import Journal
from tasks.folder.result import TrainingOutcome
from tasks.folder.run import Run
from tasks.interruption import StopRequest
from tasks.ledger import calls_noted, recall
from tasks.progress import Progress, make_progress
from tasks.stage import Stage, Stateful
from tasks.tally import Tally, everywhere
from tasks.workers import group
from zo.batches import Batch
from zo.errors import FailedBatchError, RanksError
from zo.tangents.lessons import listening


def train(
    run: Run,
    stage: str,
    *,
    steps: int,
    step: Callable[[int], Mapping[str, float]],
    state: Mapping[str, Stateful],
    model: str,
    validate: Callable[[], float | Tensor] | None = None,
    validate_every: int = 10,
    checkpoint_every: int = 10,
    progress: Progress | None = None,
    boxes: Sequence[BlackBoxFunction] = (),
    begin: Callable[[], None] | None = None,
) -> TrainingOutcome:
    """Train a stage of a run to its end, from wherever it was left.

    A stage that was finished before is loaded, not trained. One that was cut short goes on from its
    last checkpoint to the bits that it would have had without the break, as long as `step` and
    `validate` draw from nothing but torch's global CPU generator and generators that they key by
    (seed, step). In `metrics.jsonl` step k means: after k optimiser steps.

    Args:
        run: where metrics and checkpoints go.
        stage: name of the stage in the run: "seed-0/zo-sol".
        steps: optimiser steps of the whole stage.
        step: does optimiser step i (from 0) and returns its metrics, `loss` among them; `queries`
            and `rows`, cumulative, are shown as progress.
        state: everything that a step changes, by name.
        model: the entry of `state` whose best weights are kept.
        validate: loss on validation data, lower is better: the mean, or one for each row, `(rows,)`, NaN
            where it failed; weights are then compared on the rows that came back. Called before the first
            step, every `validate_every` steps and at the end. The weights of the lowest finite one are
            loaded into the model at the end. None: the last weights are kept.
        validate_every: optimiser steps between validations.
        checkpoint_every: optimiser steps between checkpoints; where these take longer than some seconds there
            are more, as many as take a twentieth of the time at most.
        progress: what the user sees; a bar in a terminal, lines elsewhere, if None.
        boxes: the black boxes that steps call: what they count in steps, in all processes, is kept in the
            outcome's ledger and, as `rows`, in the metrics; failed rows are shown, and rows that an
            interrupted step has run are counted where it goes on.
        begin: what is done once, before the first validation; rows are counted with those of validation.

    So a kill loses a few seconds, or what cannot be divided: a step, or a validation. Steps of a gradient of
    `state` that has a `journal` (`zo.LossGradient`) lose no finished query of more than a few seconds ago.

    Raises:
        NonFiniteLossError: a step's loss was NaN or infinite.
        FailedBatchError: all rows of a batch failed, and with those of steps right before ten rows in a row.
            Until then such a step changes nothing: its loss is logged as NaN, and it counts in `lost_steps`.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the step at hand was finished and a checkpoint written, or
            its finished queries were.
        CheckpointError: the stage's checkpoint cannot be read, or does not fit `state`.
        StorageError: the disk did not take metrics or a checkpoint; the one before is as it was.

    Warns:
        CheckpointWarning: the checkpoint was made with other versions.
    """
    if steps < 1 or validate_every < 1 or checkpoint_every < 1:
        raise ConfigurationError(
            f"{stage}: expected steps, validate_every and checkpoint_every of at least 1, got "
            f"{steps}, {validate_every} and {checkpoint_every}. Correct the configuration."
        )
    if model not in state:
        raise ConfigurationError(f"{stage}: expected model to be one of {sorted(state)}, got {model!r}.")
    loop = Stage(run, stage, steps, state, model)
    if run.finished and not loop.saved:
        raise CheckpointError(
            f"{run.path}: expected the checkpoint of {stage}, which the finished run had, got none. Copy "
            "checkpoints/ back, or start a new run: nothing is trained in a finished one."
        )
    answers = Answers(f"{stage}.steps")
    finished, tally = loop.restore(), Tally(boxes, answers.recalled)
    if finished:
        recall(group.journal_folder(run.path), boxes, stage)
        return loop.outcome
    outcome, showing, told = loop.outcome, ExitStack(), Told(run)
    progress = showing.enter_context(make_progress()) if progress is None else progress
    answers.attach_to(run)

    if loop.restored:
        answers.end(2 * outcome.step - loop.pending)

    def save(*, pending: bool = False) -> None:
        loop.save(pending=pending)
        answers.end(2 * outcome.step - pending)

    @contextmanager
    def remembered(place: int, least: float = 0.0) -> Iterator[None]:
        answers.place = place
        with answers.used(None, lambda box: not tally.counts(box), least):
            yield

    progress.begin(stage, steps, done=outcome.step)
    told.tell("on_start", run, stage, outcome.step, steps)
    try:
        with (
            StopRequest() as stop,
            calls_noted(group.journal_folder(run.path), boxes, stage=stage),
            _stopped_before(stop, loop),
            _journaled(run, stage, state, tally) as journal,
            listening(progress.lesson),
        ):
            # inside a step only if the step is all that has happened since the last checkpoint
            # and the process is alone: others would wait for the rest of it
            alone = group.process_group() is None
            journal.stop = lambda: alone and stop.requested and loop.nothing_since_saved
            if not loop.restored and begin is not None:
                with remembered(0), _judging(loop, tally):
                    begin()
            if not loop.restored or loop.pending:
                _judge(loop, validate, tally, told, remembered, save)
                if loop.due:
                    save()
            while outcome.step < steps:
                # a signal reaches processes at different steps
                if group.any_of(stop.requested):
                    save()
                    raise loop.interrupted()
                journal.begin(outcome.step)
                started = perf_counter()
                try:
                    with noted() as causes, tally.afresh(), remembered(2 * outcome.step + 1, LEAST):
                        before = tally.copy()
                        try:
                            metrics = step(outcome.step)
                        except FailedBatchError as error:  # of all processes at once
                            metrics = loop.without_gradient(error)
                        spent = tally.since(before)
                        spent.add(journal.used)
                except StoppedInside:
                    raise loop.interrupted(inside=True) from None
                took = perf_counter() - started
                if boxes:
                    first = spent.first_failure or (causes[0].sentence() if causes else None)
                    loop.spent(everywhere(replace(spent, first_failure=first)))
                    metrics = {"rows": outcome.ledger.rows_run, **metrics}
                loop.stepped(metrics, took)
                told.tell("on_step", stage, outcome.step, {**outcome.metrics, "seconds": outcome.seconds})
                failed = {f"failed_{kind}": count for kind, count in outcome.ledger.failures().items()}
                progress.update(outcome.step, {**outcome.metrics, **failed})
                last = outcome.step == steps
                if last or outcome.step % validate_every == 0:
                    _judge(loop, validate, tally, told, remembered, save)
                if not last and (outcome.step % checkpoint_every == 0 or loop.due):
                    save()
                if not last:
                    journal.end(covered=loop.covered)
            loop.finish()
            answers.end()
            told.tell("on_end", stage, outcome)
            journal.end()
            if group.any_of(stop.requested):
                raise loop.interrupted()
    finally:
        progress.end()
        showing.close()
    return outcome


class Gradient(Protocol):
    """What fills `.grad`: of `zo`, `AutogradGradient`, or of one's own."""

    def backward(self, batch: Batch, /) -> Tensor:
        """Add the gradient at a batch to `.grad`; the mean loss, detached."""
        ...

    def metrics(self) -> dict[str, float]:
        """Plain numbers for the log; `queries` and `dropped` are shown."""
        ...

    def state_dict(self) -> Any:
        """For the checkpoint."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """From the checkpoint."""
        ...


@contextmanager
def _stopped_before(stop: StopRequest, loop: Stage) -> Iterator[None]:
    """A process that was asked to stop too, but outside of a stage, does not answer any more: no failure."""
    try:
        yield
    except (WorkersError, RanksError) as error:
        if stop.requested:
            raise loop.interrupted() from error
        raise


@runtime_checkable
class _Journaled(Protocol):
    """A gradient that looks in a journal for queries of the step at hand."""

    journal: Any


def _judge(
    loop: Stage,
    validate: Callable[[], float | Tensor] | None,
    tally: Tally,
    told: Told,
    remembered: Callable[[int], AbstractContextManager[None]],
    save: Callable[..., None],
) -> None:
    if validate is not None:
        if loop.due:  # what was done before is not lost if the validation is cut short
            save(pending=True)
        with remembered(2 * loop.outcome.step), _judging(loop, tally):
            value = loop.validated(validate())
        told.tell("on_validation", loop.outcome.stage, loop.outcome.step, value)


@contextmanager
def _judging(loop: Stage, tally: Tally) -> Iterator[None]:
    """A block whose rows are counted apart from those of steps, recalled answers included."""
    before = tally.copy()
    yield
    loop.outcome.judging.add(everywhere(tally.since(before)))


@contextmanager
def _journaled(run: Run, stage: str, state: Mapping[str, Stateful], tally: Tally) -> Iterator[Journal]:
    """The stage's journal, given to the gradients of `state` that have none of their own."""
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
