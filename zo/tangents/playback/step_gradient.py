"""`StepGradient`: the gradient of a step through tangents, and what it was taken from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from blackbox import BlackBoxFunction
from zo.evaluators.evaluator import Step
from zo.evaluators.state import Snapshot
from zo.tangents.playback.playback import WayBack
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.window import Window
from zo.tangents.tangent import Linearised


@dataclass(frozen=True)
class StepGradient:
    """The gradient of a step through tangents, and what it was taken from.

    Attributes:
        step: the step, with the batch as it was given.
        boxes: the boxes whose rows are counted.
        window: what the step recorded.
        at_calls: what the box's tangent says at each of its calls.
        back: loss and gradients, and what the way back has shown.
        before: buffers and generators before the base.
    """

    step: Step
    boxes: Sequence[BlackBoxFunction]
    window: Window
    at_calls: Sequence[Linearised]
    back: WayBack
    before: Snapshot

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """Of each of the chosen parameters."""
        return self.back.gradients

    @property
    def pairs(self) -> list[CallPairs]:
        """What each call has shown a tangent."""
        return [at.rows for at in self.at_calls]
