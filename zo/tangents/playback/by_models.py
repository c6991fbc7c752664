"""The objective with models in the place of its boxes: no box runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.arrays import to_rows
from blackbox.calls import intercepted
from zo.batches import Batch, count_rows
from zo.errors import TangentError
from zo.objective import Objective, losses
from zo.tangents.playback.playback import answered_by
from zo.tangents.record.pairs import sizes
from zo.tangents.record.recorded_call import RecordedCall, has_rows, refuse_arrays
from zo.tangents.tangent import Linearised

KEPT = 2**18  # numbers of inputs of all calls, beyond which no graphs are kept for the way back; decision 246


class NoValuesError(TangentError):
    """A model knows no values of its box: of changes alone, or of nothing yet.

    Attributes:
        place: the place of the box, among the boxes with models.
    """

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class AskedError(TangentError):
    """A batch that was to cost no row asked a box; it was not run."""


def losses_by_models(
    who: str,
    objective: Objective,
    network: nn.Module,
    batch: Batch,
    boxes: Sequence[BlackBoxFunction],
    at: Callable[[RecordedCall], Linearised],
) -> Tensor:
    """The loss of each row by models' values, `(rows,)`, with a graph by their derivatives.

    Args:
        who: the caller, for messages.
        objective: the objective.
        network: the network.
        batch: any nesting of tensors with rows first.
        boxes: the boxes that the objective calls.
        at: gives the model of a box at a call, whose outputs are not known.

    Raises:
        NoValuesError: a model has no values.
        TangentError: the objective calls another box.
    """
    at_calls: list[Linearised] = []
    numbers = 0

    def answer(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        nonlocal numbers
        place = place_of(who, box, boxes)
        if not has_rows(arrays):
            return box.call(*arrays)
        refuse_arrays(box, arrays)
        rows = to_rows(repr(box), box.inputs, arrays)
        options = {"dtype": rows.dtype, "device": rows.device}
        nothing = tuple(torch.zeros(rows.count, *spec.shape, **options) for spec in box.outputs)
        with torch.no_grad():
            here = at(RecordedCall(place, rows.inputs, nothing))
            numbers += here.rows.z.numel()
            values = here.values_before_pull() if numbers <= KEPT else here.values
        if values is None or not all(spec.differentiable for spec in box.outputs):
            raise NoValuesError(
                f"{who}: expected a model of {box!r} that knows its values, got one without. Take a tangent "
                "that is fitted to values, and a box whose outputs all carry a gradient.",
                place,
            )
        at_calls.append(here)
        pieces = iter(values.split(sizes(here.rows.outputs), dim=1))
        by_name = dict(zip((spec.name for spec in box.inputs), arrays, strict=True))
        outputs = tuple(
            (next(pieces) if spec.copy_of is None else by_name[spec.copy_of].detach())
            .reshape(*rows.leading, *spec.shape)
            .to(spec.torch_dtype or rows.dtype, copy=True)
            for spec in box.outputs
        )
        answers = answered_by(box, at_calls, len(at_calls) - 1, outputs, arrays)
        return answers[0] if len(answers) == 1 else answers

    with torch.enable_grad(), intercepted(answer):
        return losses(objective, network, batch, count_rows(batch), with_graph=True)


def place_of(who: str, box: BlackBoxFunction, boxes: Sequence[BlackBoxFunction]) -> int:
    """The box's place among those that have models.

    Raises:
        TangentError: it is not among them: it would cost rows in steps that are to cost none.
    """
    for place, candidate in enumerate(boxes):
        if candidate is box:
            return place
    raise TangentError(
        f"{who}: expected an objective that calls no box but those in boxes, got a call of {box!r}, which "
        "has no model. Name it in boxes as well."
    )


@contextmanager
def unasked(who: str) -> Iterator[None]:
    """A block in which batches are made that cost no row.

    Args:
        who: wants them, for messages.

    Raises:
        AskedError: a box is asked. None of its rows is run.
    """

    def refuse(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        raise AskedError(
            f"{who}: expected batches for which no box is asked, got a call of {box!r}, whose rows nobody "
            "would count. Ask it once, before training, and draw batches from its answers."
        )

    with intercepted(refuse):
        yield


def unanswerable(boxes: Sequence[BlackBoxFunction]) -> str | None:
    """Explain why no model of values can answer for one of the boxes; None if models can answer for all."""
    for box in boxes:
        if not box.settable:
            return f"a row of {box!r} goes on from another row's answer, which no model of it gives"
        unknown = [spec.name for spec in box.outputs if not spec.differentiable]
        if unknown:
            return f"output {unknown[0]!r} of {box!r} carries no gradient, so no model has its values"
    return None
