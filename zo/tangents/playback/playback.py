"""The base of a step, with its graph or evaluated again, and tangents for the boxes' derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from zo.errors import TangentError
from zo.evaluators.evaluator import Step
from zo.objective import losses, mean_loss
from zo.tangents.playback.way_back import gradients_of, leaves_beside, reaches, warn_of_others
from zo.tangents.record.before import Memory, goes_on_from, numbers_before, remembering, values_before
from zo.tangents.record.pairs import sizes
from zo.tangents.record.recorded_call import RecordedCall, flat_rows, has_rows, refuse_arrays, rows_alive
from zo.tangents.record.recording import Dither, Recorded, Recorder, with_calls
from zo.tangents.record.undifferentiated import refuse_derivative_inside
from zo.tangents.record.window import Window
from zo.tangents.tangent import Linearised


class WayBack(NamedTuple):
    """The loss of a step and its gradient, by autograd through objective and tangents.

    Attributes:
        loss: the mean loss, detached.
        gradients: the gradient of each of the chosen parameters.
        beside: whether there is a way from the weights to the loss that passes no box, in the first step.
        reached: boxes and their inputs, by their places, that depend on weights.
    """

    loss: Tensor
    gradients: tuple[Tensor, ...]
    beside: bool
    reached: set[tuple[int, int]]


def evaluate_again(
    step: Step,
    boxes: Sequence[BlackBoxFunction],
    window: Window,
    at_calls: Sequence[Linearised],
    rows: Tensor | None = None,
) -> WayBack:
    """Evaluate the objective once more, with recorded answers, and autograd through it and the tangents.

    Args:
        step: the step, with its network, objective and batch.
        boxes: their calls are not evaluated.
        window: the record, at the weights as they are.
        at_calls: the box's tangent at each of its calls.
        rows: `(rows,)` bool, over which the mean is taken; None for all that survived.

    Raises:
        TangentError: it is not the evaluation that was recorded, or a gradient arrives at another box.

    Warns:
        TangentWarning: in the first step, a tensor requires a gradient and is no parameter of the network.
    """
    counting = window.survived if rows is None else rows
    answers = _Again(boxes, window, at_calls, counting)
    first = rows is None and step.number == 0  # not where a check looks again
    with torch.enable_grad():
        with intercepted(answers.call):
            by_row = losses(step.objective, step.network, window.batch, step.rows, with_graph=True)
        answers.finish()
        loss = by_row[counting].mean()
        beside = first and reaches(loss, step.parameters.tensors, around=_Answered.__name__)
        leaves = leaves_beside(loss, step.network, (step.batch, window.batch)) if first else []
        gradients = gradients_of(loss, step)
        mean = mean_loss(by_row[counting])
        del loss, by_row  # with leaves that are theirs alone
        warn_of_others(leaves, step.network)
        return WayBack(mean, gradients, beside, answers.reached)


class Live:
    """The objective recorded with its graph, so that it need not be evaluated again.

    The network is left as a forward pass leaves it.

    Args:
        step: the step, with its network, objective and batch.
        boxes: the boxes whose calls are recorded.
        dither: the dither of the boxes' inputs.
        memory: the lags of boxes whose calls show earlier ones, by the box's place.

    Attributes:
        recorded: the record, as `record` gives it.
        reached: see `WayBack`.

    Raises:
        TangentError: there was no call, or a gradient arrives at another box.
    """

    def __init__(self, step: Step, boxes: Sequence[BlackBoxFunction], dither: Dither, memory: Memory) -> None:
        step.parameters.refuse_replaced(step.network)
        step.parameters.refuse_frozen()
        self._step = step
        recorder = _LiveRecorder(boxes, dither, memory)
        with torch.enable_grad(), recorder.recording():
            self._losses = losses(step.objective, step.network, step.batch, step.rows, with_graph=True)
        self._at_calls, self.reached = recorder.at_calls, recorder.reached
        calls = remembering(recorder.calls, boxes, memory)
        self.recorded = with_calls(Recorded(self._losses.detach(), calls, recorder.rows), boxes)

    def gradients(self, at_calls: Sequence[Linearised]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss and gradients as of `evaluate_again`, where all rows survived; once, as the graph is freed.

        Args:
            at_calls: the box's tangent at each call.
        """
        self._at_calls.extend(at_calls)
        with torch.enable_grad():
            return mean_loss(self._losses), gradients_of(self._losses.mean(), self._step)


class _LiveRecorder(Recorder):
    """Gives outputs that carry the tangent's gradient, which the tangent gives later.

    Attributes:
        at_calls: the box's tangent at each call, to be filled before the graph is used.
        reached: see `WayBack`.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction], dither: Dither, memory: Memory) -> None:
        super().__init__(boxes, dither)
        self.at_calls: list[Linearised] = []
        self.reached: set[tuple[int, int]] = set()
        self._boxes, self._memory = boxes, memory
        self._inputs: list[tuple[Any, ...]] = []  # of boxes with a memory, by call
        self._predecessors: list[int | None] = []  # what each of these goes on from

    def call(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        if id(box) not in self.places:
            _refuse_graph(box, arrays)
            return box.call(*arrays)
        with torch.no_grad():
            answer = super().call(box, arrays)
        if not has_rows(arrays):
            return answer
        number = len(self.calls) - 1
        self.reached |= reached_by_weights(self.calls[number].box, arrays)
        # copies, as the objective may write to what is its own, which autograd refuses in views
        outputs = tuple(output.clone() for output in (answer if isinstance(answer, tuple) else (answer,)))
        results = answered_by(box, self.at_calls, number, outputs, arrays, self._before(number, arrays))
        return results if isinstance(answer, tuple) else results[0]

    def _before(self, number: int, arrays: tuple[Tensor, ...]) -> Tensor | None:
        """Return the values that a call shows of earlier calls, with their graph; None without memory."""
        place = self.calls[number].box
        lags = self._memory.get(place, ())
        self._inputs.append(arrays if lags else ())
        self._predecessors.append(goes_on_from(self.calls, self._boxes, number) if lags else None)
        numbers = numbers_before(self._predecessors, number, lags) if lags else ()
        if not numbers:
            return None
        return values_before(self._boxes[place], lags, arrays, [self._inputs[n] for n in numbers])


class Answers:
    """Answers the calls of an objective in the order in which they were recorded; no box is evaluated.

    Args:
        boxes: the boxes that the objective calls.
        calls: the calls.
        alive: `(batch rows,)` bool, the rows whose inputs count.

    Attributes:
        again: why calls are answered from a record, and what that asks of an objective, in words.
    """

    again = (
        "In the first step and where rows failed it is evaluated once more, with what boxes answered: it "
        "must call the same boxes in the same order on the same values. Keep the batch's rows first, draw no "
        "random numbers outside of the network's layers, nor in another thread, count no calls, and run one "
        "batch through a network that sets itself up on its first."
    )

    def __init__(
        self, boxes: Sequence[BlackBoxFunction], calls: Sequence[RecordedCall], alive: Tensor
    ) -> None:
        self.boxes = boxes
        self.calls = calls
        self.alive = alive
        self._places = {id(box): place for place, box in enumerate(boxes)}
        self._next = 0
        self._inputs: dict[int, tuple[Tensor, ...]] = {}  # of boxes with a memory, what was asked by number

    def call(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        """Return the box's recorded answer; evaluate other boxes."""
        if id(box) not in self._places:
            _refuse_graph(box, arrays)
            return box.call(*arrays)
        if not has_rows(arrays):
            return box.call(*arrays)
        number, place = self._next, self._places[id(box)]
        if number == len(self.calls) or self.calls[number].box != place:
            expectation = (
                "no further one" if number == len(self.calls) else repr(self.boxes[self.calls[number].box])
            )
            raise self.differs(f"call {number + 1} of a box to be of {expectation}", f"one of {box!r}")
        self._next += 1
        refuse_arrays(box, arrays)
        self.compare(number, box, arrays)
        if self.calls[number].before is not None:
            self._inputs[number] = arrays
        outputs = self.answer(number, box, arrays)
        return outputs[0] if len(outputs) == 1 else outputs

    def compare(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> None:
        """Compare the inputs of a call with those that were recorded."""

    def before(self, number: int, box: BlackBoxFunction) -> Tensor | None:
        """Return the values that a call shows of earlier calls, with their graph; None without memory."""
        before = self.calls[number].before
        if before is None or not before.numbers:
            return None
        earlier = [self._inputs[one] for one in before.numbers]
        return values_before(box, before.lags, self._inputs[number], earlier)

    def answer(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The base's outputs, with the leading axes that the inputs have."""
        leading = arrays[0].shape[: arrays[0].ndim - len(box.inputs[0].shape)]
        call = self.calls[number]
        return tuple(
            call.answered(place).reshape(*leading, *spec.shape).clone()
            for place, spec in enumerate(box.outputs)
        )

    def differs(self, expected: str, got: str) -> TangentError:
        """The error of an objective that makes other calls than were recorded."""
        return TangentError(f"objective: expected {expected}, got {got}. {self.again}")

    def finish(self) -> None:
        """Refuse an objective that made fewer calls than were recorded.

        Raises:
            TangentError: it did.
        """
        if self._next < len(self.calls):
            raise self.differs(f"{len(self.calls)} calls of the boxes", f"{self._next}")


class _Again(Answers):
    """Gives outputs that carry a gradient: the tangent's.

    Args:
        boxes: the boxes that the objective calls.
        window: the window that was recorded.
        at_calls: the box's tangent at each of its calls.
        alive: `(batch rows,)` bool, the rows whose inputs must equal the recorded ones.
    """

    def __init__(
        self,
        boxes: Sequence[BlackBoxFunction],
        window: Window,
        at_calls: Sequence[Linearised],
        alive: Tensor,
    ) -> None:
        super().__init__(boxes, window.calls, alive)
        self.reached: set[tuple[int, int]] = set()
        self._pending = at_calls
        self._at_calls: list[Linearised] = []  # filled when the objective is over, which takes no derivative

    def answer(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = super().answer(number, box, arrays)
        self.reached |= reached_by_weights(self.calls[number].box, arrays)
        return answered_by(box, self._at_calls, number, outputs, arrays, self.before(number, box))

    def finish(self) -> None:
        super().finish()
        self._at_calls.extend(self._pending)

    def compare(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> None:
        """The inputs must be the same, to rounding, as they were when boxes were asked."""
        for place, (spec, array) in enumerate(zip(box.inputs, arrays, strict=True)):
            call = self.calls[number]
            now, record = flat_rows(spec, array), call.inputs[place]
            dither = call.added[place] if call.added else None
            if dither is not None and now.shape == record.shape:
                now = now + dither
            where = f"input {spec.name!r} of call {number + 1}, of {box!r},"
            if now.shape != record.shape or now.dtype != record.dtype:
                if len(now) != len(record) and not bool(self.alive.all()):
                    self._refuse_chosen_rows(where)
                form, got = ((t.dtype, tuple(t.shape)) for t in (record, now))
                raise self.differs(f"{where} to be {form[0]} of shape {form[1]}", f"{got[0]} of {got[1]}")
            rows = rows_alive(self.alive, now)
            now, record = now[rows], record[rows]
            if not spec.floating:
                same = torch.equal(now, record)
            else:  # what differs in the order of sums differs by units in the last place, and adds up
                size = float(record.nan_to_num(0.0, 0.0, 0.0).abs().amax())
                tolerance = torch.finfo(now.dtype).eps ** 0.5 * size
                same = torch.allclose(now, record, rtol=0.0, atol=tolerance, equal_nan=True)
            if not same and not bool(self.alive.all()):
                if len(self.calls[number].inputs[0]) % len(self.alive):
                    self._refuse_chosen_rows(where)
                failures = int((~self.alive).sum())
                raise TangentError(
                    f"objective: expected {where} to be the same without the {failures} of {len(self.alive)} "
                    "rows that failed, got another: rows depend on each other, as under batch norm in train "
                    "mode, or the box is asked for them in another order than that of the batch. Take "
                    "network.eval(), or a norm over each row, or leading axes (rows, ...), or mend the box."
                )
            if not same:
                raise self.differs(f"{where} to be what it was when boxes were asked", "another")

    def _refuse_chosen_rows(self, where: str) -> NoReturn:
        """Refuse a box that gets some rows of a batch with a failed one: others stand in its place."""
        raise TangentError(
            f"objective: expected {where} to be the same without the {int((~self.alive).sum())} of "
            f"{len(self.alive)} rows that failed, got other rows: another row of the batch is evaluated in "
            "the place of a failed one, and a mask, as in box(z[needs]), then takes others. Give the box "
            "all rows and choose behind it, torch.where(needs[:, None], box(z), z), with cheap inputs in the "
            "rows that nobody needs; or mend the box, so that no row fails."
        )


def reached_by_weights(box: int, arrays: Sequence[Tensor]) -> set[tuple[int, int]]:
    """The inputs of a call that depend on weights, by the places of box and input."""
    return {(box, place) for place, array in enumerate(arrays) if array.requires_grad}


def answered_by(
    box: BlackBoxFunction,
    at_calls: Sequence[Linearised],
    number: int,
    outputs: tuple[Tensor, ...],
    arrays: tuple[Tensor, ...],
    before: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The outputs, with the tangent's gradient; an input without derivative, detached, makes no graph.

    Args:
        box: the box that is called.
        at_calls: the box's tangent at each call, to be filled before the graph is used.
        number: the number of the call.
        outputs: the answers.
        arrays: the inputs.
        before: the values of earlier calls, `(rows, size)`; None where no gradient goes through these.
    """
    by_spec = zip(box.inputs, arrays, strict=True)
    inputs = [array if spec.differentiable else array.detach() for spec, array in by_spec]
    return _Answered.apply(box, at_calls, number, outputs, before, *inputs)


class _Answered(Function):
    """`apply(box, at_calls, number, outputs, before, *inputs)`: outputs with the tangent's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        box: BlackBoxFunction,
        at_calls: Sequence[Linearised],
        number: int,
        outputs: tuple[Tensor, ...],
        before: Tensor | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        """Give the recorded outputs; no box is evaluated."""
        ctx.box, ctx.at_calls, ctx.number = box, at_calls, number
        ctx.before = None if before is None else before.dtype
        ctx.like = [(x.shape, x.dtype) for x in inputs]
        by_spec = zip(box.outputs, outputs, strict=True)
        ctx.mark_non_differentiable(*(out for spec, out in by_spec if not spec.differentiable))
        ctx.set_materialize_grads(False)  # None marks an output that the loss does not use
        return outputs

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The tangent's vector-Jacobian product; None for inputs without derivative."""
        if not ctx.at_calls:
            refuse_derivative_inside(ctx.box)
        at: Linearised = ctx.at_calls[ctx.number]
        z = at.rows.z
        parts = [
            z.new_zeros(len(z), size) if cotangent is None else cotangent.reshape(len(z), size).to(z.dtype)
            for cotangent, spec in zip(cotangents, ctx.box.outputs, strict=True)
            for size in sizes((spec,))
            if spec.learned
        ]
        gradients = iter(at.pull(torch.cat(parts, dim=-1)).split(sizes(at.rows.inputs), dim=-1))
        copies: dict[str | None, list[Tensor]] = {}
        for cotangent, spec in zip(cotangents, ctx.box.outputs, strict=True):
            if cotangent is not None and spec.copy_of is not None:
                copies.setdefault(spec.copy_of, []).append(cotangent)
        inputs = zip(ctx.box.inputs, ctx.like, strict=True)
        of_inputs = [
            sum((c.to(dtype) for c in copies.get(s.name, ())), next(gradients).reshape(shape).to(dtype))
            if s.differentiable
            else None
            for s, (shape, dtype) in inputs
        ]
        of_memory = list(gradients)  # by what was before
        of_before = torch.cat(of_memory, dim=-1).to(ctx.before) if of_memory and ctx.before else None
        return None, None, None, None, of_before, *of_inputs

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        """Refused."""
        refuse_derivative_inside(ctx.box)


def _refuse_graph(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> None:
    """Refuse a gradient that arrives at a box that is not named: it would be cut from the graph."""
    pairs = zip(box.inputs, arrays, strict=False)
    names = [s.name for s, x in pairs if s.differentiable and isinstance(x, Tensor) and x.requires_grad]
    if names and torch.is_grad_enabled():
        raise TangentError(
            f"objective: expected inputs of {box!r}, which is not in boxes, that do not depend on the "
            f"weights, got {names[0]!r}, which does: its gradient would be lost. Name the box in boxes as "
            f"well, or give it {names[0]}.detach() if no gradient is to pass it."
        )
