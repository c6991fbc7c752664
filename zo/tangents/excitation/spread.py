"""The spread of boxes' inputs if the network had other weights of the usual size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from zo.batches import map_tensors
from zo.errors import TangentError
from zo.evaluators.evaluator import Step
from zo.evaluators.state import Snapshot
from zo.objective import losses
from zo.tangents.playback.playback import Answers
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.playback.way_back import explained
from zo.tangents.record.recorded_call import RecordedCall

Where = tuple[int, int]  # a box and an input, by their places


def spread_of_weights(
    step: Step,
    boxes: Sequence[BlackBoxFunction],
    calls: Sequence[RecordedCall],
    alive: Tensor,
    where: Where,
    numbers: Tensor,
) -> float | None:
    """The spread of an input over networks whose weights differ as much as usual initial weights do.

    An input that is the same in all rows has no spread of its own, such as the output of a last layer that
    begins at zero, or one design for all rows. To first order a weight of a layer with n inputs, moved by
    1 / sqrt(3 n) at random, moves an input by its derivative times that. The objective is evaluated once more
    on the recorded answers. None of `boxes` runs, other boxes do, and the network is left as it was.

    Args:
        step: network, parameters, objective and batch.
        boxes: the boxes that the objective calls.
        calls: the recorded calls of the base.
        alive: `(batch rows,)` bool, the rows that did not fail.
        where: the box and its input.
        numbers: the numbers of the input that count, `(size,)` bool.

    Returns:
        The root mean square over these numbers; 0 where no weight moves them, and None where the objective
        makes other calls when it is evaluated once more.
    """
    snapshot = Snapshot(step.network)
    answers = _Sums(boxes, calls, alive, where, numbers)
    batch = map_tensors(Tensor.clone, step.batch)  # an objective may write to what it is given
    try:
        with torch.enable_grad():
            with intercepted(answers.call):
                losses(step.objective, step.network, batch, step.rows, with_graph=True)
            squares = sum(_square(one, step.parameters.tensors) for one in answers.sums)
    except TangentError:
        return None
    finally:
        snapshot.restore()
    return math.sqrt(squares / answers.count) if answers.count else 0.0


def _square(one: Tensor, weights: Sequence[Tensor]) -> float:
    total = 0.0
    with explained():
        gradients = torch.autograd.grad(one, weights, allow_unused=True, retain_graph=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            inputs = weight[0].numel() if weight.ndim > 1 else 1
            total += float(gradient.to_dense().double().square().sum()) / (3 * inputs)
    return total


def spread_around(gradient: StepGradient) -> Callable[[Where, Tensor], float | None]:
    """Gives how far an input of a step's calls would spread with other weights, see `spread_of_weights`."""
    window = gradient.window
    step = replace(gradient.step, batch=window.batch)
    return partial(spread_of_weights, step, gradient.boxes, window.calls, window.survived)


class _Sums(Answers):
    """Adds up numbers of an input, as the weights give them, with random signs.

    Attributes:
        sums: one for each call, with a graph.
        count: how many numbers are in all.
    """

    def __init__(
        self,
        boxes: Sequence[BlackBoxFunction],
        calls: Sequence[RecordedCall],
        alive: Tensor,
        where: Where,
        numbers: Tensor,
    ) -> None:
        super().__init__(boxes, calls, alive)
        self._where, self._numbers = where, numbers
        self.sums: list[Tensor] = []
        self.count = 0

    def compare(self, number: int, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> None:
        """Take the numbers; none are refused."""
        place, which = self._where
        if place == self.calls[number].box and arrays[which].requires_grad:
            rows = arrays[which].reshape(-1, self._numbers.numel())[:, self._numbers.to(arrays[which].device)]
            generator = torch.Generator().manual_seed(number)
            signs = (2 * torch.randint(2, rows.shape, generator=generator) - 1).to(rows)
            self.sums.append((rows * signs).sum())
            self.count += rows.numel()
