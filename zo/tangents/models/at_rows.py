"""`ModelAt`: a model of values at the rows of a call: its outputs and derivatives, few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from zo.tangents.models.model_tangent import pulled_back, pushed_forward
from zo.tangents.record.pairs import CallPairs, all_rows
from zo.tangents.tangent import Linearised

BLOCK = 2**18  # numbers of inputs that a model is asked for at once, for values and derivatives; decision 66


class Values(Protocol):
    """A model of a box's values."""

    def __call__(self, z: Tensor, others: Tensor) -> Tensor:
        """Inputs `(rows, size_in)` and others `(rows, size)` to outputs `(rows, size_out)`, with a graph."""
        ...


class Together:
    """The outputs at the rows of several calls, for which a model is asked once, when one is first wanted.

    Args:
        calls: the calls.
        outputs: gives the outputs at all their rows, one call after another.
    """

    def __init__(self, calls: Sequence[CallPairs], outputs: Callable[[], Tensor]) -> None:
        self._counts = [len(rows.z) for rows in calls]
        self._outputs = outputs

    @cached_property
    def by_call(self) -> tuple[Tensor, ...]:
        """The outputs of each call, `(rows, size_out)`."""
        with torch.no_grad():
            return self._outputs().split(self._counts)


class ModelAt(Linearised):
    """A model that knows values, at the rows of a call; derivatives by autograd.

    Args:
        rows: the rows of the call.
        model: gives outputs, for any rows.
        together: the outputs at these rows and those of other calls.
        number: the place of these among those.
    """

    def __init__(self, rows: CallPairs, model: Values, together: Together, number: int = 0) -> None:
        super().__init__(rows)
        self.model = model
        self._together, self._number = together, number
        self._pass: tuple[Tensor, Tensor] | None = None  # inputs and outputs with the graph between them

    @property
    def values(self) -> Tensor:
        """The outputs as the model has them."""
        return self._together.by_call[self._number]

    def values_before_pull(self) -> Tensor:
        """The outputs, whose graph is kept."""
        with torch.enable_grad():
            z = self.rows.z.detach().requires_grad_()
            self._pass = z, self.model(z, self.others)
        return self._pass[1].detach()

    @cached_property
    def others(self) -> Tensor:
        """Inputs of these rows that carry no gradient, end to end: `(rows, size)`."""
        return others_of(self.rows)

    def push(self, d: Tensor) -> Tensor:
        """The model's J d."""
        parts = [
            pushed_forward(partial(self.model, others=self.others[some]), self.rows.z[some], d[some])
            for some in blocks(self.rows.z)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def pull(self, v: Tensor) -> Tensor:
        """The model's J^T v."""
        if self._pass is not None:
            z, outputs = self._pass
            return torch.autograd.grad(outputs, z, v, retain_graph=True, materialize_grads=True)[0]
        parts = [
            pulled_back(partial(self.model, others=self.others[some]), self.rows.z[some], v[some])
            for some in blocks(self.rows.z)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """M(z) less the outputs at these rows."""
        context = others_of(replace(self.rows, z=z.detach(), others=others))
        if len(blocks(z)) > 1:  # a graph of all rows would take many times their memory
            return _AgainInBlocks.apply(self.model, z, context) - self.values
        return self.model(z, context) - self.values


def at_calls(calls: Sequence[CallPairs], model: Values) -> Together:
    """The outputs at the rows of several calls, few rows at a time where they are large."""
    rows = all_rows(calls)
    return Together(calls, lambda: in_blocks(model, rows.z, others_of(rows)))


def in_blocks(model: Values, z: Tensor, others: Tensor) -> Tensor:
    """The outputs of a model, of few rows at a time where they are large."""
    parts = [model(z[some], others[some]) for some in blocks(z)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def blocks(z: Tensor) -> list[slice]:
    """Few rows at a time of large ones, all of small ones."""
    count = max(1, BLOCK // max(1, z.shape[1]))
    return [slice(first, first + count) for first in range(0, len(z), count)] or [slice(0, 0)]


def others_of(rows: CallPairs) -> Tensor:
    """Inputs that carry no gradient, end to end: `(rows, size)`."""
    context = (array[..., None].flatten(1).to(rows.z) for array in rows.others if array is not None)
    return torch.cat([rows.z[:, :0], *context], dim=1)


class _AgainInBlocks(Function):
    """Values without a graph; the derivative evaluates the model again, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, model: Values, z: Tensor, others: Tensor) -> Tensor:
        ctx.model = model
        ctx.save_for_backward(z, others)
        return in_blocks(model, z, others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        z, others = ctx.saved_tensors
        parts = [
            pulled_back(partial(ctx.model, others=others[some]), z[some], cotangent[some])
            for some in blocks(z)
        ]
        return None, torch.cat(parts), None
