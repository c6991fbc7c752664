"""`StepGradient`: the gradient of a step through tangents, with all that it can be taken from again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from blackbox import BlackBoxFunction
from zo.evaluators.evaluator import Step
from zo.evaluators.generators import put_back
from zo.evaluators.state import Snapshot
from zo.tangents.playback.playback import WayBack, evaluate_again
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.window import Window
from zo.tangents.tangent import Linearised


@dataclass(frozen=True)
class StepGradient:
    """The gradient of a step through tangents, with all that it can be taken from again.

    Attributes:
        step: the step, with the user's batch.
        boxes: the boxes whose rows are counted.
        window: the record of the step.
        at_calls: the box's tangent at each of its calls.
        back: loss and gradients, with the findings of the backward pass.
        start: buffers and generators before the base.
    """

    step: Step
    boxes: Sequence[BlackBoxFunction]
    window: Window
    at_calls: Sequence[Linearised]
    back: WayBack
    start: Snapshot

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """The gradient of each chosen parameter."""
        return self.back.gradients

    @property
    def pairs(self) -> list[CallPairs]:
        """The rows that each call has shown a tangent."""
        return [at.rows for at in self.at_calls]

    def by_others(self, at_calls: Sequence[Linearised]) -> StepGradient:
        """The gradient of the same step by what others say at its calls; no box runs.

        Raises:
            TangentError: the objective makes other calls when it is evaluated once more.
        """
        snapshot = Snapshot(self.step.network)
        self.start.restore()
        try:
            back = evaluate_again(self.step, self.boxes, self.window, at_calls, self.window.survived)
            return replace(self, at_calls=at_calls, back=back._replace(beside=self.back.beside))
        finally:
            snapshot.restore()

    def behind_first_writes(self) -> StepGradient:
        """The same step, begun behind what the base wrote to weights and no further evaluation writes.

        A layer that sets its weights on its first batch would set them again in a query from `start`, over
        what the query moves. No box runs here.
        """
        if not self.start.different():
            return self
        snapshot = Snapshot(self.step.network)
        try:
            put_back(self.start.generators)
            start = Snapshot(self.step.network)
            evaluate_again(self.step, self.boxes, self.window, self.at_calls, self.window.survived)
            return self if start.written() else replace(self, start=start)
        finally:
            snapshot.restore()
