"""Recording the calls of black boxes inside an objective, that of the base and of all variants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.errors import TangentError
from zo.tangents.step.calls import RecordedCall

Route: TypeAlias = Callable[[int, tuple[Any, ...]], Any]  # (which box, its arrays) -> what the call gives


@contextmanager
def routed(boxes: Sequence[BlackBoxFunction], route: Callable[[Callable[..., Any]], Route]) -> Iterator[None]:
    """Send the calls of some boxes elsewhere for the duration of the block; all other boxes answer as ever.

    Args:
        boxes: told apart by what they are, not by what they equal.
        route: is given the boxes' own `__call__` and gives what takes its place.
    """
    # On the class: Python looks `box(...)` up there and not on the instance.
    own = BlackBoxFunction.__call__
    places = {id(box): place for place, box in enumerate(boxes)}
    instead = route(BlackBoxFunction.call)  # what refuses tensors that require a gradient is before it

    def call(self: BlackBoxFunction, *arrays: Any) -> Any:  # noqa: ANN401
        place = places.get(id(self))
        return own(self, *arrays) if place is None else instead(place, arrays)

    BlackBoxFunction.__call__ = call
    try:
        yield
    finally:
        BlackBoxFunction.__call__ = own


class Counter:
    """Lets calls through and counts their rows.

    Attributes:
        asked: rows in those calls.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction]) -> None:
        self.boxes = boxes
        self.asked = 0

    def route(self, own: Callable[..., Any]) -> Route:
        """For `routed`."""

        def call(place: int, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
            box = self.boxes[place]
            given = own(box, *arrays)
            first = given[0] if isinstance(given, tuple) else given
            self.asked += math.prod(first.shape[: first.ndim - len(box.outputs[0].shape)])
            return given

        return call


class Recorder:
    """Lets calls through and keeps what went in and came out.

    Attributes:
        asked: rows in those calls.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction]) -> None:
        self.boxes = boxes
        self.asked = 0
        self._seen: list[tuple[int, list[Tensor], list[Tensor]]] = []

    def route(self, own: Callable[..., Any]) -> Route:
        """For `routed`."""

        def call(place: int, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
            box = self.boxes[place]
            given = own(box, *arrays)
            refuse_arrays(box, arrays)
            outputs = given if isinstance(given, tuple) else (given,)
            # Copies, as the objective may write to what is its own.
            inputs = [flat_rows(s, t).clone() for s, t in zip(box.inputs, arrays, strict=True)]
            results = [flat_rows(s, t).clone() for s, t in zip(box.outputs, outputs, strict=True)]
            self.asked += len(inputs[0])
            self._seen.append((place, inputs, results))
            return given

        return call

    def stacked(self, variants: int) -> list[RecordedCall]:
        """The calls, where all variants went through the objective together, outermost among the rows.

        Raises:
            TangentError: a call's rows are not a multiple of the variants.
        """
        calls = []
        for place, inputs, outputs in self._seen:
            if len(inputs[0]) % variants:
                raise TangentError(
                    f"{self.boxes[place]!r}: expected {variants} times as many rows in a call as in that of "
                    f"the base alone, got {len(inputs[0])}. Keep the batch's rows first, or use "
                    "evaluator='loop'."
                )
            split = [tuple(t.unflatten(0, (variants, -1)) for t in group) for group in (inputs, outputs)]
            calls.append(RecordedCall(place, *split))
        return calls

    def one_by_one(self, variants: int) -> list[RecordedCall]:
        """The calls, where the variants went through the objective one after another.

        Raises:
            TangentError: they did not make the same calls.
        """
        count, rest = divmod(len(self._seen), variants)
        calls = []
        for n in range(count):
            same = self._seen[n::count]
            shapes = {(place, inputs[0].shape) for place, inputs, _ in same}
            if rest or len(shapes) > 1:
                break
            groups = [zip(*(seen[part] for seen in same), strict=True) for part in (1, 2)]
            calls.append(RecordedCall(same[0][0], *(tuple(map(torch.stack, group)) for group in groups)))
        if rest or len(calls) < count:
            raise TangentError(
                f"objective: expected the same calls of the boxes for each of {variants} variants, got "
                f"{len(self._seen)} calls that differ. Their number and size must not hang on the weights."
            )
        return calls


def refuse_arrays(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> None:
    """Refuse what carries no gradient.

    Raises:
        TangentError: not all of a call's arrays are torch tensors.
    """
    if not all(isinstance(array, Tensor) for array in arrays):
        raise TangentError(
            f"{box!r}: expected torch tensors, got NumPy arrays, through which there is no gradient. "
            "Leave the conversion to the box."
        )


def flat_rows(spec: ArraySpec, tensor: Tensor) -> Tensor:
    """`(*leading, *spec.shape)` to `(rows, *spec.shape)`, detached."""
    return tensor.detach().reshape(-1, *spec.shape)
