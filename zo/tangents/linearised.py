"""`Linearised`: a tangent at the rows of a call, with what it says there: values, J d, J^T v, a change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from zo.tangents.record.pairs import CallPairs, sizes


class Linearised(ABC):
    """What a tangent says at the rows of one call: J at each row, and what it knows of the outputs there.

    It answers as the tangent was when it was made, and is not asked after the tangent has learned again.

    Args:
        rows: the rows of the call.

    Attributes:
        rows: as given.
    """

    def __init__(self, rows: CallPairs) -> None:
        self.rows = rows

    @property
    def values(self) -> Tensor | None:
        """The outputs as the tangent has them, `(rows, size_out)`; None where it knows of changes alone."""
        return None

    @abstractmethod
    def push(self, d: Tensor) -> Tensor:
        """J d at each row: `(probes, rows, size_in)` to `(probes, rows, size_out)`."""

    @abstractmethod
    def pull(self, v: Tensor) -> Tensor:
        """J^T v at each row, v the gradient of the outputs: `(rows, size_out)` to `(rows, size_in)`."""

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """By what the outputs change from these rows to other inputs: `(rows, size_out)`, with a graph of z.

        Of a model M that is M(z) - M(rows.z), and zero before it has learned; of a tangent that knows of
        changes alone, J (z - rows.z), with J at `rows.z`. Its gradient at `rows.z` is `pull`.

        Args:
            z: `(rows, size_in)`, the differentiable inputs of the same rows now.
            others: the other inputs now, as `CallPairs.others` has them.
        """
        return _Linear.apply(z, self)


class LinearMap(Linearised):
    """J as two functions, and the outputs where they are known.

    Args:
        rows: the rows of the call.
        push: gives J d, see `Linearised.push`.
        pull: its adjoint, see `Linearised.pull`.
        values: the outputs, `(rows, size_out)`; None where changes alone are known.
    """

    def __init__(
        self,
        rows: CallPairs,
        push: Callable[[Tensor], Tensor],
        pull: Callable[[Tensor], Tensor],
        values: Tensor | None = None,
    ) -> None:
        super().__init__(rows)
        self._push, self._pull, self._values = push, pull, values

    @property
    def values(self) -> Tensor | None:
        """As given."""
        return self._values

    def push(self, d: Tensor) -> Tensor:
        """J d, by the function that was given."""
        return self._push(d)

    def pull(self, v: Tensor) -> Tensor:
        """J^T v, by the function that was given."""
        return self._pull(v)


class Unknown(Linearised):
    """J is zero, and no value is known: of a model that has not learned yet."""

    def push(self, d: Tensor) -> Tensor:
        """Zero."""
        return d.new_zeros(*d.shape[:-1], sum(sizes(self.rows.outputs)))

    def pull(self, v: Tensor) -> Tensor:
        """Zero."""
        return v.new_zeros(*v.shape[:-1], sum(sizes(self.rows.inputs)))

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """Zero, without a graph."""
        return z.new_zeros(len(z), sum(sizes(self.rows.outputs)))


class Behind(Linearised):
    """A tangent that stands on a prior, whose values are the prior's.

    Args:
        rows: the rows of the call.
        prior: the prior at these rows.
    """

    def __init__(self, rows: CallPairs, prior: Linearised) -> None:
        super().__init__(rows)
        self.prior = prior

    @property
    def values(self) -> Tensor | None:
        """The prior's."""
        return self.prior.values


class _Linear(Function):
    """`apply(z, at)`: J (z - rows.z), with the tangent's own adjoint."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, at: Linearised) -> Tensor:
        ctx.at = at
        return at.push((z - at.rows.z)[None])[0]

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return ctx.at.pull(cotangent), None
