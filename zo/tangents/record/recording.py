"""Recording of an objective's calls of the boxes, and of their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.calls import intercepted
from zo.errors import TangentError
from zo.evaluators.evaluator import Step
from zo.evaluators.loop import unmoved_losses
from zo.evaluators.state import Snapshot
from zo.tangents.record.before import Memory, remembering
from zo.tangents.record.recorded_call import Parts, RecordedCall, flat_rows, has_rows, refuse_arrays
from zo.tangents.record.undifferentiated import Undifferentiated


class Dither:
    """Dither of the boxes' inputs: nothing is added here; subclasses add some."""

    def __bool__(self) -> bool:
        """True if anything is added."""
        return False

    def added(self, number: int, place: int, specs: Sequence[ArraySpec], inputs: Sequence[Tensor]) -> Parts:
        """Return the dither that is added to the inputs of a call; empty for none.

        Args:
            number: the number of the call in the objective.
            place: the place of the box among the boxes.
            specs: the specs of the box's inputs.
            inputs: the objective's inputs, `(rows, *spec.shape)` each.

        Returns:
            For each input `(rows, *spec.shape)`, or None for one without dither.
        """
        return ()

    def look(self, calls: Sequence[RecordedCall], boxes: Sequence[BlackBoxFunction]) -> None:
        """Take in what was recorded, before tangents learn from it."""

    def response(self, number: int, box: BlackBoxFunction, call: RecordedCall) -> Parts:
        """Return the part of a dithered call's outputs that is withheld from the objective.

        Args:
            number: the number of the call in the objective.
            box: the box.
            call: the recorded call.

        Returns:
            For each output `(rows, *spec.shape)`, or None for one that is given whole; empty for none.
        """
        return ()


class Repeated(Dither):
    """The dither of calls that were recorded, once more: a check's, as the base had it."""

    def __init__(self, calls: Sequence[RecordedCall]) -> None:
        self._calls = calls

    def __bool__(self) -> bool:
        """True if the recorded calls have dither."""
        return any(call.added for call in self._calls)

    def added(self, number: int, place: int, specs: Sequence[ArraySpec], inputs: Sequence[Tensor]) -> Parts:
        """Return the recorded dither; none where the objective makes other calls."""
        if number >= len(self._calls) or self._calls[number].box != place:
            return ()
        parts = self._calls[number].added
        rows = len(inputs[0])
        return () if any(part is not None and len(part) != rows for part in parts) else parts

    def response(self, number: int, box: BlackBoxFunction, call: RecordedCall) -> Parts:
        """Return the recorded response to the dither."""
        return self._calls[number].hidden


@dataclass(frozen=True)
class Recorded:
    """An evaluation of the objective with its calls.

    Attributes:
        losses: `(rows,)`, NaN where a row failed.
        calls: the calls of the boxes, in their order.
        rows: how many rows the boxes were asked for.
    """

    losses: Tensor
    calls: list[RecordedCall]
    rows: int


@torch.no_grad()
def record(step: Step, boxes: Sequence[BlackBoxFunction], dither: Dither, memory: Memory) -> Recorded:
    """Evaluate the objective without a graph; the network is left as it was.

    Args:
        step: the step, with its network, objective and batch.
        boxes: the boxes whose calls are recorded.
        dither: the dither of the boxes' inputs.
        memory: the lags of boxes whose calls show earlier ones, by the box's place.

    Raises:
        TangentError: there are no calls.
    """
    step.parameters.refuse_replaced(step.network)
    step.parameters.refuse_frozen()
    recorder = Recorder(boxes, dither)
    with recorder.recording():
        losses = unmoved_losses(step, Snapshot(step.network))
    return with_calls(Recorded(losses, remembering(recorder.calls, boxes, memory), recorder.rows), boxes)


class Recorder:
    """Lets calls of some boxes through and keeps their inputs and outputs.

    Args:
        boxes: the boxes, compared by identity, not by equality.
        dither: the dither of the boxes' inputs.

    Attributes:
        rows: how many rows the calls had.
        calls: the calls, in their order.
        places: the places of the boxes, by identity.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction], dither: Dither) -> None:
        self.rows = 0
        self.calls: list[RecordedCall] = []
        self.places = {id(box): place for place, box in enumerate(boxes)}
        self._dither = dither
        self._dithers: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, arrays of earlier calls

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A block whose calls are recorded."""
        with intercepted(self.call):
            yield

    def call(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        """Return the box's answer, and keep it."""
        if id(box) not in self.places or not has_rows(arrays):
            return box.call(*arrays)
        number, place = len(self.calls), self.places[id(box)]
        dither = self._added(number, place, box, arrays)
        arguments = arrays
        if dither:
            arguments = tuple(
                array if part is None else array + part.view(array.shape)
                for array, part in zip(arrays, dither, strict=True)
            )
        answer = box.call(*arguments)
        refuse_arrays(box, arrays)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        # Copies, as the objective may write to what is its own.
        call = RecordedCall(
            place,
            tuple(flat_rows(s, t).clone() for s, t in zip(box.inputs, arguments, strict=True)),
            tuple(flat_rows(s, t).clone() for s, t in zip(box.outputs, outputs, strict=True)),
            added=dither,
        )
        _refuse_false_copies(box, call)
        if dither:
            call = replace(call, hidden=self._dither.response(number, box, call))
            if call.hidden:
                outputs = tuple(
                    y if part is None else y - part.view(y.shape)
                    for y, part in zip(outputs, call.hidden, strict=True)
                )
        self.rows += len(call.inputs[0])
        self.calls.append(call)
        # An objective that takes a derivative itself would take this answer for a constant.
        result = Undifferentiated.apply(box, len(outputs), *outputs, *arrays)
        return result if isinstance(answer, tuple) else result[0]

    def _added(self, number: int, place: int, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Parts:
        """The dither of a call; what an earlier call was given too has the same in both."""
        if not self._dither or not all(isinstance(array, Tensor) for array in arrays):
            return ()
        inputs = [flat_rows(spec, array) for spec, array in zip(box.inputs, arrays, strict=True)]
        draw = self._dither.added(number, place, box.inputs, inputs)
        earlier_dithers = [self._dithers.get(id(array)) for array in arrays]
        parts = tuple(
            earlier[1] if earlier is not None and _is_within(spec, x, earlier[1]) else new
            for earlier, new, spec, x in zip(
                earlier_dithers, draw or (None,) * len(arrays), box.inputs, inputs, strict=True
            )
        )
        self._dithers |= {
            id(array): (array, part) for array, part in zip(arrays, parts, strict=True) if part is not None
        }
        return parts if any(part is not None for part in parts) else ()


def with_calls(recorded: Recorded, boxes: Sequence[BlackBoxFunction]) -> Recorded:
    """Return the record; refuse an objective that called no box, unless all rows had failed before.

    Raises:
        TangentError: it did not.
    """
    if not recorded.calls and bool(recorded.losses.isfinite().any()):
        raise TangentError(
            f"objective: expected a call of a box in {list(boxes)}, got none. Name in boxes the very objects "
            "that the objective calls; without a box, use autograd."
        )
    return recorded


def _refuse_false_copies(box: BlackBoxFunction, call: RecordedCall) -> None:
    """Refuse an output that is not the input that its spec says it is: its derivative would be wrong."""
    copies = [(place, spec) for place, spec in enumerate(box.outputs) if spec.copy_of is not None]
    if not copies:
        return
    rows, inputs = (
        box.answered(call.outputs),
        dict(zip((s.name for s in box.inputs), call.inputs, strict=True)),
    )
    for place, spec in copies:
        output, array = (t[..., None] for t in (call.outputs[place], inputs[spec.copy_of or ""]))
        same = torch.isclose(
            output.to(array), array, rtol=torch.finfo(array.dtype).eps ** 0.5, equal_nan=True
        )
        wrong = ~same.flatten(1).all(dim=1) & output.flatten(1).isfinite().all(dim=1)
        if bool((wrong if rows is None else wrong & rows.to(wrong.device)).any()):
            raise TangentError(
                f"{box!r}: expected output {spec.name!r} to be input {spec.copy_of!r} as it was, got other "
                "numbers. Leave copy_of= out of its spec."
            )


def _is_within(spec: ArraySpec, rows: Tensor, dither: Tensor) -> bool:
    """Say whether another box's dither keeps this input within its bounds wherever the input already was."""
    low, high = spec.ends
    moved = rows + dither
    return spec.bounds is None or bool(
        ((moved >= rows.clamp(max=low)) & (moved <= rows.clamp(min=high))).all()
    )
