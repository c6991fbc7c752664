"""Weights that reach a box's input unseen: read where stacked probes do not show their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction, BudgetError
from zo.errors import TangentError
from zo.evaluators.evaluator import Problem
from zo.evaluators.hidden_weights import hidden
from zo.evaluators.replacements import replacements
from zo.evaluators.state import Snapshot
from zo.objective import losses, uncompiled
from zo.perturbation import Directions
from zo.tangents.step.calls import RecordedCall
from zo.tangents.step.recording import Route, flat_rows, routed


@torch.no_grad()
def refuse_unseen_weights(
    problem: Problem, boxes: Sequence[BlackBoxFunction], calls: Sequence[RecordedCall], alive: Tensor
) -> None:
    """Refuse an objective in which a box's input hangs on weights that stacked probes do not move.

    Probes say nothing about what such a weight does in the box, and the tangent's word for it, its
    prior's, would go into the gradient in silence. Elsewhere, as in a penalty on the weights, such a
    read does no harm: autograd sees it.

    Costs one evaluation of the objective, in which the boxes are not evaluated: they give the recorded
    answers. A weight that is NaN but for the forward of its own module shows at the boxes' inputs.

    Args:
        problem: of the step.
        boxes: the boxes.
        calls: of the base and the probes; only the base's are used.
        alive: `(batch rows,)` bool, the rows that did not fail.

    Raises:
        TangentError: it does, or the objective cannot be evaluated like that.
    """
    modules = replacements(problem, Directions(torch.zeros(1, problem.parameters.size)))
    watch = _Watch(boxes, calls, alive)
    start = Snapshot(problem.network)
    why = "a weight that is read elsewhere"
    try:
        with hidden(problem.parameters.tensors, modules), uncompiled(), routed(boxes, watch.route):
            losses(problem.objective, problem.network, problem.batch, problem.rows)
        unseen = watch.unseen
    except BudgetError:  # of another box
        raise
    except _OtherCalls:  # it cannot be replayed either, which the second evaluation says better
        unseen = watch.unseen
    except Exception as error:  # with the weights in sight it worked
        unseen, why = True, f"{type(error).__name__} when a weight cannot be read elsewhere"
    finally:
        start.restore()
    if unseen:
        raise TangentError(
            "objective: expected the inputs of boxes to hang on weights that are read in the forward of the "
            f"module that holds them, got {why}: stacked probes do not move it. Let the module give it, with "
            "rows first, as `def forward(self, x): return self.theta.expand(len(x), -1)`, or take "
            "evaluator='loop'."
        )


class _OtherCalls(Exception):
    """The boxes were called in another order."""


class _Watch:
    """Gives the recorded answers, and sees whether inputs are finite that were so when they were recorded."""

    def __init__(
        self, boxes: Sequence[BlackBoxFunction], calls: Sequence[RecordedCall], alive: Tensor
    ) -> None:
        self.boxes = boxes
        self.calls = calls
        self.alive = alive
        self.unseen = False
        self._next = 0

    def route(self, own: Callable[..., Any]) -> Route:
        """For `routed`."""

        def call(place: int, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
            if self._next == len(self.calls) or self.calls[self._next].box != place:
                raise _OtherCalls
            box, recorded = self.boxes[place], self.calls[self._next]
            self._next += 1
            for spec, array, kept in zip(box.inputs, arrays, recorded.inputs, strict=True):
                lost = kept[0].isfinite() & ~flat_rows(spec, array).isfinite()
                self.unseen |= bool(self._of_living_rows(lost).any())
            leading = arrays[0].shape[: arrays[0].ndim - len(box.inputs[0].shape)]
            pairs = zip(box.outputs, recorded.outputs, strict=True)
            answers = tuple(kept[0].reshape(*leading, *spec.shape).clone() for spec, kept in pairs)
            return answers[0] if len(answers) == 1 else answers

        return call

    def _of_living_rows(self, rows: Tensor) -> Tensor:
        each, rest = divmod(len(rows), len(self.alive))
        return rows if rest else rows[self.alive.repeat_interleave(each).to(rows.device)]
