"""Inputs that are the same in all rows though weights move them: values say nothing of their derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from blackbox.words import counted
from zo.batches import map_tensors
from zo.evaluators.evaluator import Step
from zo.evaluators.state import Snapshot
from zo.objective import losses
from zo.tangents.recording import RecordedCall, rows_alive
from zo.tangents.replay import Answers

FEW = (
    32  # numbers of an input of which each one is looked at; of larger ones, as fields, all must be the same
)


def unvaried_inputs(
    step: Step, boxes: Sequence[BlackBoxFunction], calls: Sequence[RecordedCall], alive: Tensor
) -> list[str]:
    """Inputs with numbers that are the same in all rows of the batch, and that weights move; in words.

    One design for all rows is such an input, and the output of a saturated layer. A tangent that learns from
    values takes its derivative for zero, so that those weights would never move.

    The numbers of an input are looked at one by one where there are at most 32; of a larger one all must be
    the same, since cells beyond a wall may be. Where there are such inputs the objective is evaluated once
    more, on what was recorded; none of `boxes` runs, another box that it calls does, and the network is left
    as it was.

    Args:
        step: network, parameters, objective and batch.
        boxes: the boxes that the objective calls.
        calls: what was recorded of the base; variants beside it do not count.
        alive: `(batch rows,)` bool, the rows that did not fail.

    Returns:
        For each, the box, the call and the input; empty if there is none, or fewer than two rows.
    """
    if int(alive.sum()) < 2:
        return []
    same = [_same_in_all_rows(boxes[call.box], call, alive) for call in calls]
    if not any(same):
        return []
    before = Snapshot(step.network)
    answers = _Reached(boxes, calls, alive, same)
    batch = map_tensors(Tensor.clone, step.batch)  # an objective may write to what it is given
    with torch.enable_grad(), intercepted(answers.call):
        losses(step.objective, step.network, batch, step.rows, with_graph=True)
    before.restore()
    weights = step.parameters.tensors
    moved = []
    for words, numbers in answers.reached:
        gradients = torch.autograd.grad(numbers, weights, allow_unused=True, retain_graph=True)
        if any(gradient is not None and bool(gradient.to_dense().any()) for gradient in gradients):
            moved.append(words)
    return moved


def _same_in_all_rows(box: BlackBoxFunction, call: RecordedCall, alive: Tensor) -> dict[int, Tensor]:
    """By the places of differentiable inputs, which of their numbers `(size,)` are the same in all rows."""
    same = {}
    for place, (spec, kept) in enumerate(zip(box.inputs, call.inputs, strict=True)):
        if spec.differentiable and spec.modelled:
            rows = kept[0][rows_alive(alive, kept[0])]
            rows = rows.reshape(len(rows), -1)
            numbers = (rows == rows[:1]).all(dim=0)
            if bool(numbers.any()) and (bool(numbers.all()) or numbers.numel() <= FEW):
                same[place] = numbers
    return same


class _Reached(Answers):
    """Sums the numbers that are the same in all rows, as the weights gave them.

    Attributes:
        reached: in words which input it is, and the sum, of those with a graph.
    """

    def __init__(
        self,
        boxes: Sequence[BlackBoxFunction],
        calls: Sequence[RecordedCall],
        alive: Tensor,
        same: Sequence[dict[int, Tensor]],
    ) -> None:
        super().__init__(boxes, calls, alive)
        self._same = same
        self.reached: list[tuple[str, Tensor]] = []

    def check(self, number: int, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> None:
        """Take the numbers; none are refused."""
        for place, numbers in self._same[number].items():
            array, spec = arrays[place], box.inputs[place]
            if array.requires_grad:
                rows = array.reshape(-1, numbers.numel())[:, numbers]
                # weighed, so that numbers that add up to one show
                weigh = torch.arange(1, rows.numel() + 1, dtype=rows.dtype, device=rows.device).cos()
                count, size = int(numbers.sum()), counted(numbers.numel(), "number")
                words = f"{spec.name!r} of call {number + 1}, of {box!r} ({count} of {size})"
                self.reached.append((words, (rows * weigh.reshape(rows.shape)).sum()))
