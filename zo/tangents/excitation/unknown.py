"""`WithoutUnknown`: what a tangent says, without a derivative by inputs whose response is not known yet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zo.tangents.tangent import Linearised


class WithoutUnknown(Linearised):
    """A tangent at some rows, with a derivative of zero by some inputs.

    Args:
        at: The tangent at these rows.
        places: The places of these inputs' numbers.
    """

    def __init__(self, at: Linearised, places: Sequence[int]) -> None:
        super().__init__(at.rows)
        self._at, self._places = at, list(places)

    @property
    def values(self) -> Tensor | None:
        """The outputs by the tangent."""
        return self._at.values

    def push(self, d: Tensor) -> Tensor:
        """The tangent's J d of the other inputs."""
        return self._at.push(self._without(d))

    def pull(self, v: Tensor) -> Tensor:
        """The adjoint of `push`."""
        return self._without(self._at.pull(v))

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """The change by the other inputs."""
        stays = z.clone()
        stays[:, self._places] = self.rows.z[:, self._places].to(z)
        return self._at.to(stays, others)

    def _without(self, inputs: Tensor) -> Tensor:
        others = inputs.clone()
        others[..., self._places] = 0.0
        return others
