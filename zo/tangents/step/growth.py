"""How a gradient grows on its way back through the calls, for the words of one that is not finite."""

from __future__ import annotations

import math

from torch import Tensor

from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.tangent import Linearised

GROWN = 1e12  # times as large as where it begins


def grown(gradient: StepGradient) -> str | None:
    """Say where a gradient that is not finite came out of proportion on its way back; None if it did not.

    The objective is evaluated once more, with the answers that it had; no box runs.

    Args:
        gradient: the gradient of the step.
    """
    watched = [_Watched(at) for at in gradient.at_calls]
    try:
        gradient.by_others(watched)
    except Exception:  # whatever an objective raises there, the gradient is not finite
        return None
    sizes = [(at.size, call) for call, at in enumerate(watched, start=1) if 0 < at.size < math.inf]
    if not sizes:
        return None
    (least, begins), (most, ends) = sizes[-1], max(sizes)
    if most < GROWN * least:
        return None
    return (
        f"On its way back through the calls it grew from {least:.1g} at call {begins} to {most:.1g} at call "
        f"{ends}, and on. A loss that depends on its weights so strongly has no gradient of use. Cut it, as "
        "by .detach() every 25 calls of what a box hands on, or make fewer calls; or take zo.LossGradient, "
        "which goes back through none. Else go on with the next batch."
    )


class _Watched(Linearised):
    """A tangent at a call that notes how large the gradient of the outputs is."""

    def __init__(self, at: Linearised) -> None:
        super().__init__(at.rows)
        self._at, self.size = at, 0.0

    @property
    def values(self) -> Tensor | None:
        """The tangent's."""
        return self._at.values

    def push(self, d: Tensor) -> Tensor:
        """The tangent's."""
        return self._at.push(d)

    def pull(self, v: Tensor) -> Tensor:
        """The tangent's, of a gradient whose size is noted."""
        self.size = float(v.abs().max())
        return self._at.pull(v)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """The tangent's."""
        return self._at.to(z, others)
