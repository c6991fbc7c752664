"""Anchored replay: a gradient at other weights from what was recorded before, with no row of a box.

Call k of the objective, at an input x' that the weights of today give it, is answered by

    y' = y_k + M(x') - M(x_k),

where x_k and y_k were recorded and M is the box's tangent. The answer is exact at the weights of the
recording. Elsewhere its error is the error of the tangent's *derivative*, times the way from x_k to x'. An
offset of M cancels. Abbeel, Quigley and Ng (ICML 2006) and On-Policy Corrections (ICLR 2022) have the same
correction in control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from zo.errors import TangentError
from zo.evaluators.evaluator import Step
from zo.objective import losses
from zo.tangents.playback.playback import Answers
from zo.tangents.playback.way_back import gradients_of
from zo.tangents.record.before import remembering
from zo.tangents.record.pairs import sizes
from zo.tangents.record.window import Window
from zo.tangents.tangent import Linearised, Tangent


@dataclass(frozen=True)
class Anchors:
    """A window that others may have recorded, and tangents at its calls; good until a tangent learns.

    Attributes:
        window: the window, its calls with the values of earlier ones where a box has a memory.
        at_calls: the tangent of the box at each call, by the call's number.
    """

    window: Window
    at_calls: Mapping[int, Linearised]

    @classmethod
    def at(cls, window: Window, boxes: Sequence[BlackBoxFunction], tangents: Sequence[Tangent]) -> Anchors:
        """The anchors at a window.

        Args:
            window: the window that was recorded.
            boxes: the boxes that the objective calls.
            tangents: the tangents, one for each box.
        """
        memory = {place: tangent.lags for place, tangent in enumerate(tangents) if tangent.lags}
        window = replace(window, calls=tuple(remembering(window.calls, boxes, memory)))
        pairs, at_calls = window.pairs(boxes), {}
        for place, tangent in enumerate(tangents):
            numbers = [number for number, call in enumerate(window.calls) if call.box == place]
            if numbers:
                at_each = tangent.at_each([pairs[number] for number in numbers])
                at_calls |= dict(zip(numbers, at_each, strict=True))
        return cls(window, at_calls)


def anchored(
    step: Step, boxes: Sequence[BlackBoxFunction], anchors: Anchors
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses and gradient at the weights as they are.

    Args:
        step: network, parameters, objective and batch; of this, the window's counts.
        boxes: their calls are not evaluated.
        anchors: the window that was recorded, and the tangents there.

    Returns:
        The losses, `(rows,)`, detached, and the gradient of their mean over the rows that survived, for each
        of the chosen parameters. Both may hold NaN where the objective or a tangent gives it.

    Raises:
        TangentError: the objective makes other calls than were recorded.
    """
    answers, survived = _Anchored(boxes, anchors), anchors.window.survived
    with torch.enable_grad():
        with intercepted(answers.call):
            rows = losses(step.objective, step.network, step.batch, len(survived), with_graph=True)
        answers.finish()
        gradients = gradients_of(rows[survived].mean(), step)
    return rows.detach(), gradients


class FromRecord(Answers):
    """Answers calls by what was recorded, for a replay; a box that is not named would cost rows."""

    again = (
        "A replay gives boxes' answers from a record: which boxes are called, and how often, must not depend "
        "on the weights, nor on what boxes answer. Train it without replays."
    )

    def call(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        """Answer as recorded; a box that is not named was not, and is refused."""
        if all(box is not candidate for candidate in self.boxes):
            raise TangentError(
                f"TangentGradient.replay: expected an objective that calls no box but those in boxes, got a "
                f"call of {box!r}, whose answers are not recorded. Name it in boxes as well."
            )
        return super().call(box, arrays)


class _Anchored(FromRecord):
    """Answers calls by what was recorded and what a tangent says of the way from there.

    Args:
        boxes: the boxes that the objective calls.
        anchors: the window that was recorded, and the tangents there.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction], anchors: Anchors) -> None:
        super().__init__(boxes, anchors.window.calls, anchors.window.survived)
        self.at_calls = anchors.at_calls

    def compare(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> None:
        """Inputs may be others than those recorded, but not of another form."""
        for spec, array, record in zip(box.inputs, arrays, self.calls[number].inputs, strict=True):
            rows = array.numel() // max(1, record[0].numel())
            if rows != len(record) or array.dtype != record.dtype:
                raise TangentError(
                    f"TangentGradient.replay: expected input {spec.name!r} of call {number + 1}, of {box!r}, "
                    f"to have {len(record)} rows of {record.dtype}, as recorded, got {rows} of "
                    f"{array.dtype}. "
                    "The rows of a call must not depend on the weights."
                )

    def answer(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """y_k + M(x') - M(x_k), with a graph; outputs that carry no gradient are those recorded.

        Copies of inputs are these.
        """
        record, at = super().answer(number, box, arrays), self.at_calls[number]
        pairs = at.rows
        variables = [
            array.reshape(len(pairs.z), -1)
            for spec, array in zip(box.inputs, arrays, strict=True)
            if spec.differentiable
        ]
        others = tuple(
            None if spec.differentiable else array.detach().reshape(len(pairs.z), *spec.shape)
            for spec, array in zip(box.inputs, arrays, strict=True)
            if spec.modelled
        )
        recorded = self.calls[number].before
        if recorded is not None:  # a run's first calls have the memory that they were recorded with
            earlier_values = self.before(number, box)
            variables.append(recorded.values if earlier_values is None else earlier_values)
        change = at.to(torch.cat([variable.to(pairs.z.dtype) for variable in variables], dim=1), others)
        changes = iter(change.split(sizes(pairs.outputs), dim=1))
        by_name = dict(zip((spec.name for spec in box.inputs), arrays, strict=True))
        return tuple(
            output + next(changes).reshape(output.shape).to(output.dtype)
            if spec.learned
            else output
            if spec.copy_of is None
            else by_name[spec.copy_of].clone()
            for spec, output in zip(box.outputs, record, strict=True)
        )
