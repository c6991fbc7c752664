"""Recording: what the base and the probes of a step ask of the boxes, and what they are answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction
from blackbox.calls import intercepted
from blackbox.notices import warn
from zo.batches import map_tensors, tensors
from zo.draws import PROBES, Key
from zo.errors import TangentError, TangentWarning
from zo.evaluators.evaluator import Evaluator, Step
from zo.evaluators.loop import loop_losses
from zo.evaluators.stacked import Stacked, stacked_losses
from zo.evaluators.state import Snapshot
from zo.evaluators.variant_forward import NotStackable
from zo.execution.helped import helped
from zo.execution.ranks import Ranks
from zo.execution.shared_rows import apart
from zo.objective import Objective
from zo.perturbation import Directions
from zo.tangents.record.call import Parts, RecordedCall, flat_rows, has_rows, joined_calls, refuse_arrays
from zo.tangents.record.undifferentiated import Undifferentiated


class Dither:
    """What the boxes are asked beside what the objective asks: nothing, here."""

    def __bool__(self) -> bool:
        """Whether anything is."""
        return False

    def added(self, number: int, place: int, specs: Sequence[ArraySpec], inputs: Sequence[Tensor]) -> Parts:
        """What is added to the inputs of a call, of one variant; empty for nothing.

        Args:
            number: the number of the call in the objective.
            place: that of the box among the boxes.
            specs: the box's inputs.
            inputs: what the objective asks, `(rows, *spec.shape)` each.

        Returns:
            For each input `(rows, *spec.shape)`, or None for one that is asked as it is.
        """
        return ()

    def look(self, calls: Sequence[RecordedCall], boxes: Sequence[BlackBoxFunction]) -> None:
        """Take in what was recorded, before tangents learn from it."""

    def response(self, number: int, box: BlackBoxFunction, call: RecordedCall) -> Parts:
        """What the objective is not given of the outputs of a call that something was added to.

        Args:
            number: the number of the call in the objective.
            box: the box.
            call: what it was asked and answered.

        Returns:
            For each output, of one variant, `(1, rows, *spec.shape)`, or None for one that is given as it is;
            empty for none.
        """
        return ()


class Repeated(Dither):
    """The dither of calls that were recorded, once more: a check's, as the base had it."""

    def __init__(self, calls: Sequence[RecordedCall]) -> None:
        self._calls = calls

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return any(call.added for call in self._calls)

    def added(self, number: int, place: int, specs: Sequence[ArraySpec], inputs: Sequence[Tensor]) -> Parts:
        """As recorded; none where the objective makes other calls."""
        if number >= len(self._calls) or self._calls[number].box != place:
            return ()
        parts = self._calls[number].added
        rows = len(inputs[0])
        if any(part is not None and part.shape[1] != rows for part in parts):
            return ()
        return tuple(None if part is None else part[0] for part in parts)

    def response(self, number: int, box: BlackBoxFunction, call: RecordedCall) -> Parts:
        """As recorded."""
        return self._calls[number].hidden


@dataclass(frozen=True)
class SeenCall:
    """One call as the objective made it, before its rows are divided among the variants.

    Attributes:
        box: its place among the boxes.
        inputs: one tensor `(rows, *spec.shape)` for each input spec.
        outputs: one tensor `(rows, *spec.shape)` for each output spec.
        added: the dither of each input, see `RecordedCall`.
        hidden: what the objective is not given of each output.
    """

    box: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    added: Parts = ()
    hidden: Parts = ()

    @property
    def form(self) -> tuple[int, torch.Size]:
        """What the calls of different variants have in common: the box, and the shape of its first input."""
        return self.box, self.inputs[0].shape


@dataclass(frozen=True)
class Recorded:
    """What some variants of a step gave.

    Attributes:
        losses: `(variants, rows)`, NaN where a row failed.
        calls: the calls of the boxes, in their order.
        rows: how many rows the boxes were asked for.
        apart: whether variants could not be evaluated together, and were one after another.
    """

    losses: Tensor
    calls: list[RecordedCall]
    rows: int
    apart: bool = False


@torch.no_grad()
def record(
    step: Step,
    boxes: Sequence[BlackBoxFunction],
    evaluator: Evaluator,
    probes: int,
    mu: float,
    key: Key,
    ranks: Ranks,
    chunk: int | None,
    dither: Dither,
) -> Recorded:
    """Evaluate the objective with the network as it is and with `probes` randomly moved copies of it.

    Args:
        step: the step, with its network, objective and batch.
        boxes: the boxes whose calls are recorded.
        evaluator: `Stacked` or `Loop`; a direction of zero is the base.
        probes: the number of probes.
        mu: standard deviation of the moves.
        key: the key of the step, on which draws depend.
        ranks: the processes that share the variants out, or the rows of one chunk; each gets all that was
            recorded.
        chunk: how many variants run together; None for all. Chunk n is of rank n % size.
        dither: what boxes are asked beside what the objective asks; the same for all variants.

    Raises:
        TangentError: the calls of different variants cannot be separated, or there are none; or a rank
            failed.
    """
    variants = range(1 + probes)
    chunks = [variants[first : first + (chunk or 1 + probes)] for first in variants[:: chunk or 1 + probes]]
    home = step.parameters.tensors[0].device
    # of one chunk the rows are shared out
    help_here = helped(ranks, boxes, key.step, home) if len(chunks) == 1 else alone(ranks)
    with ranks.meeting(key.step) as meeting, help_here:
        step.parameters.refuse_replaced(step.network)
        step.parameters.refuse_frozen()
        parts = []
        for in_chunk in chunks[ranks.rank :: ranks.size]:
            # The base alone needs no stack, which not every layer supports.
            together = isinstance(evaluator, Stacked) and len(in_chunk) > 1
            moves = _moves(step, in_chunk, mu, key)
            parts.append(_variants(step, boxes, moves, dither, together=together))
        meeting.message = parts if ranks.size == 1 else [_packed(part) for part in parts]
    parts = [meeting.messages[place % ranks.size][place // ranks.size] for place in range(len(chunks))]
    if ranks.size > 1:
        parts = [_unpacked(part, home) for part in parts]
    return _joined([one for part in parts for one in part], boxes)


class Recorder:
    """Lets calls of some boxes through and keeps what went in and came out.

    Args:
        boxes: compared by identity, not by equality.
        dither: what they are asked beside what the objective asks.
        variants: how many are in each call, the rows of one behind those of the other.

    Attributes:
        rows: how many rows those calls had.
        seen: those calls, in their order.
        places: the places of the boxes, by identity.
    """

    def __init__(
        self, boxes: Sequence[BlackBoxFunction], dither: Dither | None = None, variants: int = 1
    ) -> None:
        self.rows = 0
        self.seen: list[SeenCall] = []
        self.places = {id(box): place for place, box in enumerate(boxes)}
        self._boxes = boxes
        self._dither, self._variants = dither or Dither(), variants
        self._first = 0  # of the calls that the objective has made since it began
        self._begun: list[int] = []  # where each of its evaluations has
        self._dithers: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, arrays of earlier calls

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A block whose calls are recorded."""
        with intercepted(self.call):
            yield

    def recorded(self, losses: Tensor) -> Recorded:
        """What the base alone gave.

        Args:
            losses: the losses of the base, `(1, rows)`.

        Raises:
            TangentError: there was no call.
        """
        return _joined([Recorded(losses, _alone(self.seen), self.rows)], self._boxes)

    def each_from_the_first(self, objective: Objective) -> Objective:
        """The objective, of which each evaluation begins with call 0."""

        def beginning(network: nn.Module, batch: Any) -> Tensor:
            self._first = len(self.seen)
            self._begun.append(self._first)
            self._dithers.clear()
            return objective(network, batch)

        return beginning

    def evaluations(self) -> list[list[SeenCall]]:
        """The calls of each evaluation of such an objective."""
        ends = [*self._begun[1:], len(self.seen)]
        return [self.seen[begun:end] for begun, end in zip(self._begun, ends, strict=True)]

    def call(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        """What the box answers, kept."""
        if id(box) not in self.places or not has_rows(arrays):
            return box.call(*arrays)
        number, place = len(self.seen) - self._first, self.places[id(box)]
        dither = self._added(number, place, box, arrays)
        arguments = arrays
        if dither:
            arguments = tuple(
                array if part is None else array + _all_variants(part, array)
                for array, part in zip(arrays, dither, strict=True)
            )
        answer = box.call(*arguments)
        refuse_arrays(box, arrays)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        # Copies, as the objective may write to what is its own.
        call = SeenCall(
            place,
            tuple(flat_rows(s, t).clone() for s, t in zip(box.inputs, arguments, strict=True)),
            tuple(flat_rows(s, t).clone() for s, t in zip(box.outputs, outputs, strict=True)),
            added=_in_variants(dither),
        )
        _refuse_false_copies(box, call)
        if dither:
            rows = len(call.inputs[0]) // self._variants
            base = RecordedCall(
                place,
                tuple(x[None, :rows] for x in call.inputs),
                tuple(y[None, :rows] for y in call.outputs),
                added=call.added,
            )
            call = replace(call, hidden=self._dither.response(number, box, base))
            if call.hidden:
                outputs = tuple(
                    y if part is None else y - _all_variants(part[0], y)
                    for y, part in zip(outputs, call.hidden, strict=True)
                )
        self.rows += len(call.inputs[0])
        self.seen.append(call)
        # An objective that takes a derivative itself would take this answer for a constant.
        result = Undifferentiated.apply(box, len(outputs), *outputs, *arrays)
        return result if isinstance(answer, tuple) else result[0]

    def _added(self, number: int, place: int, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Parts:
        """The dither of a call, of one variant; what an earlier call was given too has the same in both."""
        if not self._dither or not all(isinstance(array, Tensor) for array in arrays):
            return ()
        inputs = [flat_rows(spec, array) for spec, array in zip(box.inputs, arrays, strict=True)]
        rows, rest = divmod(len(inputs[0]), self._variants)
        if rest:
            return ()
        draw = self._dither.added(number, place, box.inputs, [x[:rows] for x in inputs])
        before = [self._dithers.get(id(array)) for array in arrays]
        parts = tuple(
            earlier[1] if earlier is not None and _is_within(spec, x[:rows], earlier[1]) else own
            for earlier, own, spec, x in zip(
                before, draw or (None,) * len(arrays), box.inputs, inputs, strict=True
            )
        )
        self._dithers |= {
            id(array): (array, part) for array, part in zip(arrays, parts, strict=True) if part is not None
        }
        return parts if any(part is not None for part in parts) else ()


def _variants(
    step: Step, boxes: Sequence[BlackBoxFunction], moves: Directions, dither: Dither, *, together: bool
) -> list[Recorded]:
    """Record some variants, in one call of the objective where they are stacked and it can take that."""
    recorder, asked_in_vain = Recorder(boxes, dither, len(moves) if together else 1), 0
    if together:
        try:
            with recorder.recording():
                losses = stacked_losses(step, moves, Snapshot(step.network))
            return [Recorded(losses, _stacked(recorder, boxes, len(moves)), recorder.rows)]
        except Exception as error:  # of a layer that vmap cannot take, such as an LSTM
            # a network that is asked for some of the rows alone, as where rows end early, is no fault
            if isinstance(error, BlackBoxError) and not isinstance(error, NotStackable):
                raise
            warn(
                "TangentGradient: expected an objective that can be evaluated for base and probes together, "
                f"got {type(error).__name__}: {error} They are evaluated one after another from here on. "
                "Take zo.ProbedGradient(evaluator='loop').",
                TangentWarning,
            )
        recorder, asked_in_vain = Recorder(boxes, dither), recorder.rows
    step = replace(step, objective=recorder.each_from_the_first(step.objective))
    with recorder.recording():
        losses = loop_losses(step, moves, Snapshot(step.network))
    return [
        Recorded(
            losses[number : number + 1],
            _alone(calls),
            asked_in_vain + recorder.rows if number == 0 else 0,
            apart=together,
        )
        for number, calls in enumerate(recorder.evaluations())
    ]


def alone(ranks: Ranks) -> AbstractContextManager[None]:
    """A block in which a process asks boxes what others do not, so that `SharedRows` waits for none."""
    return apart() if ranks.size > 1 else nullcontext()


def _refuse_false_copies(box: BlackBoxFunction, call: SeenCall) -> None:
    """Refuse an output that is not the input that its spec says it is: its derivative would be wrong."""
    copies = [(place, spec) for place, spec in enumerate(box.outputs) if spec.copy_of is not None]
    if not copies:
        return
    rows, inputs = (
        box.answered(call.outputs),
        dict(zip((s.name for s in box.inputs), call.inputs, strict=True)),
    )
    for place, spec in copies:
        output, array = call.outputs[place], inputs[spec.copy_of or ""]
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
    """Whether the dither of another box leaves the bounds of this input nowhere, as its own would not."""
    low, high = spec.ends
    moved = rows + dither
    return spec.bounds is None or bool(
        ((moved >= rows.clamp(max=low)) & (moved <= rows.clamp(min=high))).all()
    )


def _all_variants(part: Tensor, array: Tensor) -> Tensor:
    """What all variants have, `(rows, *shape)`, in the form of an array of the rows of all, one by one."""
    return part.repeat(array.numel() // part.numel(), *(1,) * (part.ndim - 1)).view(array.shape)


def _in_variants(parts: Parts) -> Parts:
    """Parts of rows as those of all variants."""
    return tuple(None if part is None else part[None] for part in parts)


def _alone(calls: Sequence[SeenCall]) -> list[RecordedCall]:
    """Calls of rows `(rows, *shape)` as those of a single variant, `(1, rows, *shape)`."""
    return [
        RecordedCall(
            call.box,
            tuple(x[None] for x in call.inputs),
            tuple(y[None] for y in call.outputs),
            call.added,
            call.hidden,
        )
        for call in calls
    ]


def _in_vain(chunk: Recorded, base: Recorded) -> Recorded:
    """Variants whose rows all failed, perhaps before the last call: the base's calls, without an answer."""
    variants, calls = len(chunk.losses), list[RecordedCall]()
    for call in base.calls:
        nothing = [torch.full_like(y[:1], torch.nan if y.is_floating_point() else 0) for y in call.outputs]
        inputs, outputs = (
            tuple(array[:1].expand(variants, *array.shape[1:]) for array in arrays)
            for arrays in (call.inputs, nothing)
        )
        calls.append(RecordedCall(call.box, inputs, outputs))
    return replace(chunk, calls=calls)


def _moves(step: Step, variants: range, mu: float, key: Key) -> Directions:
    """The moves of some variants: the first of all is the base, and each probe has its own draws."""
    size, dtype = step.parameters.size, step.parameters.dtype
    moves = torch.zeros(len(variants), size, dtype=dtype)
    for place, variant in enumerate(variants):
        if variant > 0:
            moves[place] = mu * torch.randn(size, generator=key.generator(PROBES, variant - 1), dtype=dtype)
    return Directions(moves)


def _stacked(recorder: Recorder, boxes: Sequence[BlackBoxFunction], variants: int) -> list[RecordedCall]:
    """The calls, where all variants went through the objective together, outermost among the rows."""

    def split(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.unflatten(0, (variants, -1)) for tensor in tensors)

    for call in recorder.seen:
        rows = len(call.inputs[0])
        if rows % variants:
            raise TangentError(
                f"{boxes[call.box]!r}: expected {variants} times as many rows in a call as in that of the "
                f"base alone, got {rows}. Keep the batch's rows first, or use "
                "zo.ProbedGradient(evaluator='loop')."
            )
    return [
        RecordedCall(call.box, split(call.inputs), split(call.outputs), call.added, call.hidden)
        for call in recorder.seen
    ]


def _joined(chunks: Sequence[Recorded], boxes: Sequence[BlackBoxFunction]) -> Recorded:
    """The chunks of a step as one record; the base's alone where all its rows failed, which ends the step."""
    if not bool(chunks[0].losses[0].isfinite().any()):  # perhaps before a call, or between two
        return replace(chunks[0], rows=sum(chunk.rows for chunk in chunks))
    forms = [_form(chunk) for chunk in chunks]
    for place, chunk in enumerate(chunks):
        if forms[place] != forms[0] and not bool(chunk.losses.isfinite().any()):
            chunks = [*chunks[:place], _in_vain(chunk, chunks[0]), *chunks[place + 1 :]]
            forms[place] = forms[0]
    if any(form != forms[0] for form in forms):
        raise _differ(f"{' or '.join(map(str, sorted({len(form) for form in forms})))} calls that differ")
    if not forms[0]:
        raise TangentError(
            f"objective: expected a call of a box in {list(boxes)}, got none. Name in boxes the very objects "
            "that the objective calls; without a box, use autograd."
        )
    if len(chunks) == 1:
        return chunks[0]
    calls = [joined_calls(same, dim=0) for same in zip(*(chunk.calls for chunk in chunks), strict=True)]
    losses, rows = torch.cat([chunk.losses for chunk in chunks]), sum(chunk.rows for chunk in chunks)
    return Recorded(losses, calls, rows, any(chunk.apart for chunk in chunks))


def _form(chunk: Recorded) -> list[Any]:
    """What calls of all variants have in common: boxes, shapes, dtypes."""
    return [(c.box, [(t.shape[1:], t.dtype) for t in tensors(c.plain())]) for c in chunk.calls]


def _differ(got: str) -> TangentError:
    return TangentError(
        f"objective: expected the same calls of the boxes for the base and all probes, got {got}. Their "
        "number, size and dtype must not depend on the weights."
    )


def _packed(part: Recorded) -> tuple[Recorded, list[bool]]:
    """The record in the CPU's memory, to be sent; and which tensors were in a GPU's."""
    return map_tensors(Tensor.cpu, part), [tensor.is_cuda for tensor in tensors(part)]


def _unpacked(packed: tuple[Recorded, list[bool]], home: torch.device) -> Recorded:
    """The record with tensors moved back to the network's device, where they came from another's."""
    were_there = iter(packed[1])
    return map_tensors(lambda tensor: tensor.to(home) if next(were_there) else tensor, packed[0])
