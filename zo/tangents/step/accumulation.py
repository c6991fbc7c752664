"""`Accumulation`: gradients are added to `.grad`, none far longer than those of the steps before."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from blackbox.notices import Notices
from zo.parameters import Parameters, accumulate
from zo.tangents.step.clipping import Clipping


class Accumulation:
    """Adds gradients to `.grad`, no longer than a bound, and warns where that changes a sum of gradients.

    Args:
        parameters: the parameters whose `.grad` it is.
        most: the longest gradient, in multiples of the median length of the last steps; None for no bound.
        notices: the notices given so far.
    """

    def __init__(self, parameters: Parameters, most: float | None, notices: Notices) -> None:
        self._parameters, self._notices, self._clipping = parameters, notices, Clipping(most)

    def add_share(self, gradients: Sequence[Tensor], share: float, step: int) -> bool:
        """Add a share of a step's gradient; the next are compared with its length.

        Args:
            gradients: the gradient of each parameter.
            share: the factor of the gradient.
            step: the number of the step.

        Returns:
            Whether it was shortened.

        Warns:
            TangentWarning: see `Clipping.weigh`, `Clipping.of_sizes` and `Clipping.of_sums`.
        """
        part = gradients if share == 1.0 else [share * gradient for gradient in gradients]
        self._clipping.remember(part)
        self._notices.say(self._clipping.weigh(part, step), self._clipping.of_sizes(step))
        return self.add(part, step)

    def add(self, gradients: Sequence[Tensor], step: int) -> bool:
        """Add a gradient, and say whether it was shortened; arguments and warnings as for `add_share`."""
        gradients, shorter = self._clipping.shortened(gradients)
        tensors = self._parameters.tensors
        adds_up = self._clipping.adds_up_to(tensors[0].grad)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            accumulate(tensor, gradient)
        self._notices.say(self._clipping.of_sums(step, adds_up, tensors[0].grad, shorter))
        return shorter

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block behind which the next gradients are compared with what they were before it."""
        clipping, self._clipping = self._clipping, copy.copy(self._clipping)
        try:
            yield
        finally:
            self._clipping = clipping

    def state_dict(self) -> dict[str, Any]:
        """The lengths of the last steps' gradients."""
        return self._clipping.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._clipping.load_state_dict(state)
