"""`Evaluations`: the evaluation of a gradient's steps with the real boxes; `Evaluation`: one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blackbox.errors import RowFailedError
from blackbox.failures import FailedRow, noted
from zo.batches import Batch, count_rows, map_tensors
from zo.draws import Key
from zo.evaluators.evaluator import Step
from zo.evaluators.generators import Turns
from zo.evaluators.state import Snapshot
from zo.failed_rows import survivors
from zo.same_run import arrays_of, refuse_other_run
from zo.tangents.assumptions.cut import outputs_without_gradient
from zo.tangents.evidence.outliers import Outlying
from zo.tangents.playback.playback import Live, WayBack, evaluate_again
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.playback.way_back import refuse_autocast, warn_of_batch
from zo.tangents.record.before import Memory
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.record.recording import Dither, Recorded, record
from zo.tangents.record.window import Window, without_failed
from zo.tangents.step import refusals
from zo.tangents.step.gradient_settings import GradientSettings
from zo.tangents.tangent import Linearised
from zo.tangents.trust import Check


class Evaluations:
    """Evaluates a gradient's steps with its boxes, and in turn with other gradients.

    Args:
        settings: the arguments of the gradient.

    Attributes:
        key: the key of all draws.
        boxes: the boxes that the objective calls.
        turns: the turns of the steps that draw, see `Turns`.
    """

    def __init__(self, settings: GradientSettings) -> None:
        self.key = Key(settings.seed)
        self.boxes, self.turns, self._settings = settings.boxes, Turns(settings.network), settings

    @contextmanager
    def alone(self, call: str) -> Iterator[None]:
        """A block in which weights and, while it draws, generators are its own, and there are graphs.

        Args:
            call: the method of `TangentGradient` that it is in, for messages.
        """
        name, parameters = f"TangentGradient.{call}", self._settings.parameters
        refuse_autocast(parameters.tensors, name)
        with parameters.alone(name), self.turns.taken(), torch.inference_mode(False):
            yield

    def step(self, batch: Batch, number: int, rows: int | None = None) -> Step:
        """Make the step of a batch.

        Args:
            batch: any nesting of tensors with rows first.
            number: the number of the step.
            rows: how many rows there are; None for as many as the batch shows.
        """
        batch, settings = map_tensors(_with_version, batch), self._settings
        rows = count_rows(batch) if rows is None else rows
        return Step(settings.network, settings.parameters, settings.objective, batch, rows, number=number)

    @contextmanager
    def run(self, step: Step, dither: Dither, memory: Memory) -> Iterator[Evaluation]:
        """Run the boxes, and then a block that takes a gradient and has it checked.

        Where the block fails the network is as it was.

        Args:
            step: the step.
            dither: the dither of the boxes' inputs.
            memory: the lags of boxes whose calls show earlier ones, by the box's place.
        """
        start = Snapshot(step.network)
        if step.number == 0:
            warn_of_batch(step.batch)
        with _undone(start):
            yield self._with_or_without(step, dither, start, memory)

    def _with_or_without(self, step: Step, dither: Dither, start: Snapshot, memory: Memory) -> Evaluation:
        """Run the base; once more without the dither if that leaves no row, or ends a call that may not fail.

        Our own additions to the user's queries never end a training.
        """
        earlier_rows = self._rows_asked()
        try:
            evaluation = self._base(step, dither, start, memory)
            if not evaluation.spoilt:
                return evaluation
            refused, spent = "no row of the batch had a finite loss.", evaluation.rows
        except RowFailedError as error:
            if not dither:
                raise
            refused, spent = str(error), self._rows_asked() - earlier_rows
        start.restore()
        return self._base(step, Dither(), start, memory, refused, spent)

    def _base(
        self,
        step: Step,
        dither: Dither,
        before: Snapshot,
        memory: Memory,
        refused: str = "",
        spent: int = 0,
    ) -> Evaluation:
        """The objective with the boxes: with a graph, but in the first step."""
        with noted() as causes:
            if step.number == 0:
                recorded, live = record(step, self.boxes, dither, memory), None
            else:
                live = Live(step, self.boxes, dither, memory)
                recorded = live.recorded
        return Evaluation(self, step, recorded, causes, before, dither, live, refused, spent)

    def _rows_asked(self) -> int:
        """Return the rows that the boxes have been asked for so far; nested boxes have one ledger."""
        ledgers = {id(box.ledger): box.ledger for box in self.boxes}
        return sum(ledger.rows_asked for ledger in ledgers.values())

    def answers(self, batch: Batch) -> Evaluation:
        """Evaluate a batch before the first step; the network is left as it was.

        Args:
            batch: the batch.

        Raises:
            TangentError, ObjectiveError, ParameterError: as `TangentGradient.backward`.
        """
        step, start = self.step(batch, number=0), Snapshot(self._settings.network)
        try:
            with noted() as causes:
                recorded = record(step, self.boxes, Dither(), {})
        finally:
            start.restore()  # running statistics, and what is drawn in the first step
        return Evaluation(self, step, recorded, causes, start, Dither())

    def state_dict(self) -> dict[str, Any]:
        """Seed, and the boxes' arrays."""
        return {"seed": self.key.seed, "boxes": "; ".join(map(arrays_of, self.boxes))}

    def refuse_other(self, state: dict[str, Any]) -> None:
        """Refuse the state of another run.

        Raises:
            ConfigurationError: the state is of a run with another seed, or boxes of other arrays.
        """
        refuse_other_run("TangentGradient", self.state_dict(), state)


class Evaluation:
    """The boxes' inputs and answers in a step.

    The base's graph is kept and used for the backward pass. In two cases the objective is evaluated once
    more for that, with the recorded answers: in the first step, which compares the two evaluations, and
    where rows failed.

    Args:
        evaluations: the evaluations of the gradient's steps.
        step: the step, with the user's batch.
        recorded: the recorded calls of the boxes.
        causes: the reasons why rows failed, as far as boxes gave them.
        start: the network before the evaluation.
        dither: the dither of the boxes' inputs.
        live: the graph, where there is one.
        refused: why a dither was left out, since it left no row; empty where none was left out.
        spent: rows that the boxes were asked for with that dither.

    Attributes:
        step, dither, causes, refused: the arguments of these names.
        boxes: the boxes that the objective calls.
        rows: how many rows the boxes were asked for.
        losses: the losses, `(rows,)`.
        recorded: the calls of the boxes, as they were asked.
        survived: the rows that did not fail, `(rows,)` bool.
        cut: outputs without derivative that the loss depends on, in words; set in a first step.
        outlying: rows that nothing is learned from; to be set.
        check: the result of queries along the gradient; to be set.
    """

    def __init__(
        self,
        evaluations: Evaluations,
        step: Step,
        recorded: Recorded,
        causes: Sequence[FailedRow],
        start: Snapshot,
        dither: Dither,
        live: Live | None = None,
        refused: str = "",
        spent: int = 0,
    ) -> None:
        self.step, self.causes, self.refused = step, causes, refused
        self.dither, self.boxes, self._turns = dither, evaluations.boxes, evaluations.turns
        self._start, self._live = start, live
        self.survived = recorded.losses.isfinite()
        self.rows, self.losses, self.recorded = recorded.rows + spent, recorded.losses, recorded.calls
        self.cut: list[str] = []
        self.outlying: Outlying | None = None
        self.check = Check()

    @property
    def spoilt(self) -> bool:
        """True if all rows failed where something was added to a box's inputs."""
        return self.dithered and not bool(self.survived.any())

    @property
    def dithered(self) -> bool:
        """True if something was added to a box's inputs."""
        return bool(self.dither) and any(call.added for call in self.recorded)

    @property
    def lost(self) -> int:
        """Rows that failed."""
        return int((~self.survived).sum())

    def usual(self, window: Window) -> Window:
        """Return the step's window, in which rows that nothing is learned from count as failed."""
        window = replace(window, calls=tuple(replace(call, before=None) for call in window.calls))
        if self.outlying is None:
            return window
        return replace(window, survived=window.survived & ~self.outlying.rows.to(window.survived.device))

    @cached_property
    def _settled(self) -> tuple[list[RecordedCall], Any]:
        return without_failed(self.survived, self.recorded, self.step.batch)

    @property
    def calls(self) -> list[RecordedCall]:
        """The calls, with another row in the place of each that failed."""
        return self._settled[0]

    @property
    def batch(self) -> Any:
        """The batch in the same way, as it was when the boxes had answered."""
        return self._settled[1]

    def refuse_none_left(self, steps: int) -> None:
        """Refuse a step without a surviving row.

        Args:
            steps: how many steps there were.

        Raises:
            FailedQueriesError: all rows failed.
        """
        survivors(self.losses, steps, self.causes)

    def pairs(self) -> list[CallPairs]:
        """Return each call's rows for tangents, without failed ones; the first step looks at the objective.

        Raises:
            FailedQueriesError: all rows failed.
        """
        number, boxes = self.step.number, self.boxes
        self.refuse_none_left(number)
        if self._live is not None and not self.survived.all():
            self._start.restore()
            self._live = None
        calls = self.calls  # from now on nobody writes to them, nor to the batch
        if number == 0:
            self.cut = outputs_without_gradient(self.step, boxes, self.recorded, self.survived)
        self.dither.look(calls, boxes)
        return [call.pairs(boxes[call.box], self.survived) for call in calls]

    def gradient(self, at_calls: Sequence[Linearised], errors: Sequence[float | None]) -> StepGradient:
        """Run the backward pass by autograd, with the tangents in the boxes' place; no box runs. Once.

        Args:
            at_calls: the box's tangent at each call.
            errors: the errors of their predictions, by call, for a message.

        Raises:
            TangentError: as `evaluate_again` and `Live.gradients`; or rows depend on those that failed.
            NonFiniteGradientError: it is not finite.
        """
        number, units = self.step.number, [at.rows.response_scale for at in at_calls]
        window = Window(number, self.batch, tuple(self.calls), tuple(units), self.losses, self.survived)
        if self._live is None:
            back = evaluate_again(self.step, self.boxes, window, at_calls)
        else:
            back = WayBack(*self._live.gradients(at_calls), False, self._live.reached)
        self._turns.look()
        refusals.refuse_dependent_rows(back.loss, self.losses, self.survived)
        far = () if self.outlying is None else self.outlying.calls
        gradient = StepGradient(self.step, self.boxes, window, at_calls, back, self._start)
        refusals.refuse_not_finite(back.gradients, errors, far, number)
        return gradient


@contextmanager
def _undone(before: Snapshot) -> Iterator[None]:
    """A block that leaves a network as it was where it fails."""
    try:
        yield
    except BaseException:
        before.restore()
        raise


def _with_version(tensor: Tensor) -> Tensor:
    """A tensor that autograd can keep: those of inference mode it refuses."""
    return tensor.clone() if tensor.is_inference() else tensor
