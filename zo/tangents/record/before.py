"""The memory of a call: values of earlier calls, for a program that keeps state it does not send.

A hidden state shows in the change of the visible state since the call before, together with the action
before; a model can infer it from both. After a delay it shows in the action so many calls ago. A run's first
calls have no such memory. Made-up numbers in its place, such as zeros, would be unlike all others. So nothing
is learned from those calls, and the model is asked there with the memory of the first call that has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction

if TYPE_CHECKING:
    from zo.tangents.record.recorded_call import RecordedCall

Lags = tuple[int, ...]  # how many calls ago what is shown was given; with 1 the change of state is shown too
Boxes = Sequence[BlackBoxFunction] | Mapping[int, BlackBoxFunction]  # by place
Memory = Mapping[int, Lags]  # by the place of a box, of those that have any


@dataclass(frozen=True)
class Before:
    """The values that a call shows of earlier calls.

    Attributes:
        lags: how many calls ago these were.
        numbers: the numbers of these calls in the objective; empty for a call without such memory.
        values: `(rows, size)`, see `values_before`; a call without memory has the values of a later one.
    """

    lags: Lags
    numbers: tuple[int, ...]
    values: Tensor


def _parts(box: BlackBoxFunction) -> tuple[list[int], list[int]]:
    """Places of a box's learned inputs: those that it hands on, as a state, and the others, as an action."""
    answers = {(spec.name, spec.shape) for spec in box.outputs if spec.learned}
    learned = [place for place, spec in enumerate(box.inputs) if spec.learned]
    states = [place for place in learned if (box.inputs[place].name, box.inputs[place].shape) in answers]
    return states, [place for place in learned if place not in states]


def specs_before(box: BlackBoxFunction, lags: Lags) -> tuple[ArraySpec, ...]:
    """The specs of the shown values: the change of each state, and each action so many calls ago."""
    states, actions = _parts(box)

    def named(place: int, words: str) -> ArraySpec:
        spec = box.inputs[place]
        return replace(spec, name=f"{spec.name}_{words}", scale=None, bounds=None)

    changes = [named(place, "change") for place in states if 1 in lags]
    return (*changes, *(named(place, f"{lag}_before") for lag in lags for place in actions))


def values_before(
    box: BlackBoxFunction,
    lags: Lags,
    now: Sequence[Tensor],
    earlier: Sequence[Sequence[Tensor]],
) -> Tensor:
    """Return the values of earlier calls, `(rows, size)`, with a graph where the arrays have one.

    Args:
        box: the box.
        lags: how many calls ago.
        now: the arrays of the call, one for each input, with rows first.
        earlier: the arrays of the call so many calls ago, for each lag.
    """
    states, actions = _parts(box)
    changes = [now[place] - earlier[lags.index(1)][place] for place in states if 1 in lags]
    arrays = [*changes, *(arrays[place] for arrays in earlier for place in actions)]
    shapes = [spec.shape for spec in specs_before(box, lags)]
    pairs = zip(arrays, shapes, strict=True)
    return torch.cat([array.reshape(-1, math.prod(shape)) for array, shape in pairs], dim=1)


def goes_on_from(calls: Sequence[RecordedCall], boxes: Boxes, number: int) -> int | None:
    """The number of the call that one goes on from: the last of its box, whose answer it is asked."""
    call = calls[number]
    predecessor = next((n for n in range(number - 1, -1, -1) if calls[n].box == call.box), None)
    goes_on = predecessor is not None and _goes_on(boxes[call.box], calls[predecessor], call)
    return predecessor if goes_on else None


def _goes_on(box: BlackBoxFunction, before: RecordedCall, call: RecordedCall) -> bool:
    """Say whether the call's inputs that the box hands on all equal the answers of the call before it."""
    answers = {spec.name: place for place, spec in enumerate(box.outputs)}
    common = [(place, answers[spec.name]) for place, spec in enumerate(box.inputs) if spec.name in answers]
    return bool(common) and all(_same(call.asked(place), before.answered(answer)) for place, answer in common)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def numbers_before(predecessors: Sequence[int | None], number: int, lags: Lags) -> tuple[int, ...]:
    """The numbers of the calls so many before one; none where a run has begun since.

    Args:
        predecessors: for each call the one that it goes on from, see `goes_on_from`.
        number: the number of the call.
        lags: how many calls before.
    """
    chain: list[int] = []
    at: int | None = number
    while len(chain) < max(lags):
        at = predecessors[at]
        if at is None:
            return ()
        chain.append(at)
    return tuple(chain[lag - 1] for lag in lags)


def remembering(calls: Sequence[RecordedCall], boxes: Boxes, memory: Memory) -> list[RecordedCall]:
    """Calls that show what was before, of boxes that have a memory.

    Args:
        calls: all of an evaluation, in their order.
        boxes: the boxes.
        memory: how far back it goes, by box.
    """
    if not memory:
        return list(calls)
    predecessors = [goes_on_from(calls, boxes, n) if c.box in memory else None for n, c in enumerate(calls)]
    new_calls = list(calls)
    for place, lags in memory.items():
        call_numbers = [number for number, call in enumerate(calls) if call.box == place]
        of_next: Tensor | None = None
        for number in reversed(call_numbers):
            numbers = numbers_before(predecessors, number, lags)
            call, box = calls[number], boxes[place]
            if numbers:
                earlier = [calls[n].inputs for n in numbers]
                of_next = values_before(box, lags, call.inputs, earlier)
            values = of_next
            if values is None or len(values) != len(call.inputs[0]):
                values = values_before(box, lags, call.inputs, [call.inputs] * len(lags))
            new_calls[number] = replace(call, before=Before(lags, numbers, values))
    return new_calls
