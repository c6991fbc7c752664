"""Numbers of answers that no input moves, as a check sees them: previews, forcings, clocks.

A program may send the next values of a reference, or its forcing. Such a number is no function of the
inputs, so a model of values fits noise, and gives the number a derivative where inputs explain each other. A
check asks the same rows again with the weights moved a little. A number that stays to the bit there, while
other numbers of the same answers move, depends on nothing that a network gives. Its derivative is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zo.tangents.evidence.responses import Response
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.tangent import Linearised

# decision 215:
MANY = 0.5  # of the rows, that differ in a number: one of few values, as of a relay, may jump further on
COARSE = 1e5  # units in the last place: what varies by less between rows may have moved, and been rounded


def unmoved_by(gradient: StepGradient, responses: Sequence[Response]) -> dict[int, tuple[int, ...]]:
    """Return the places of numbers that no row of a check has moved, while others moved, for each box.

    Args:
        gradient: the gradient of the step that is checked.
        responses: the responses of its calls.

    Returns:
        The places of these numbers by the place of the box; without boxes where no number moved.
    """
    places_by_box: dict[int, tuple[int, ...]] = {}
    calls = gradient.window.calls[: len(responses)]
    for place in {call.box for call in calls}:
        call_numbers = [number for number, call in enumerate(calls) if call.box == place]
        moved = torch.stack([(responses[n].change != 0).any(dim=0) for n in call_numbers]).any(dim=0).cpu()
        if bool(moved.any()):
            answers = torch.cat([gradient.pairs[n].y[gradient.pairs[n].alive] for n in call_numbers]).cpu()
            places = (~moved).nonzero().flatten().tolist()
            places_by_box[place] = tuple(n for n in places if _would_show(answers[:, n]))
    return places_by_box


def _would_show(answers: Tensor) -> bool:
    """Say whether a small move of a number would change it, `(rows,)`; one row does not show it."""
    if len(answers) < 2:
        return False
    unit = COARSE * torch.finfo(answers.dtype).eps * answers.abs().amax()
    return len(answers.unique()) > MANY * len(answers) and bool(answers.std() > unit)


class Masked(Linearised):
    """A tangent with a derivative of zero for some outputs, by some inputs, or both.

    Args:
        at: The tangent at these rows.
        outputs: The places of numbers among the outputs that nothing moves.
        inputs: The places of numbers among the inputs whose response is not known.
    """

    def __init__(self, at: Linearised, *, outputs: Sequence[int] = (), inputs: Sequence[int] = ()) -> None:
        super().__init__(at.rows)
        self._at, self._outputs, self._inputs = at, list(outputs), list(inputs)

    @property
    def values(self) -> Tensor | None:
        """The outputs by the tangent."""
        return self._at.values

    def values_before_pull(self) -> Tensor | None:
        """The outputs by the tangent."""
        return self._at.values_before_pull()

    def push(self, d: Tensor) -> Tensor:
        """The tangent's J d, of the other inputs and outputs."""
        return _zeroed(self._at.push(_zeroed(d, self._inputs)), self._outputs)

    def pull(self, v: Tensor) -> Tensor:
        """The adjoint of `push`."""
        return _zeroed(self._at.pull(_zeroed(v, self._outputs)), self._inputs)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """The change of the other outputs by the other inputs."""
        stays = z.clone()
        stays[:, self._inputs] = self.rows.z[:, self._inputs].to(z)
        return _zeroed(self._at.to(stays, others), self._outputs)


def _zeroed(numbers: Tensor, places: list[int]) -> Tensor:
    """The numbers with zeros at some places of the last axis."""
    with_zeros = numbers.clone()
    with_zeros[..., places] = 0.0
    return with_zeros
