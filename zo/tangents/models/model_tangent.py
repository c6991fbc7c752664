"""`ModelTangent`: the derivative of a simpler, differentiable solver, in the box's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from zo.errors import ConfigurationError
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.tangent import Linearised, Tangent

RowFunction = Callable[[Tensor], Tensor]
"""From `(rows, size_in)` to `(rows, size_out)`, each row by itself."""


ENDS = "Error"  # torch's node behind a function that is differentiable once


class ModelTangent(Tangent):
    """The derivative of a model of the box: the user's own coarser or simplified solver, written in torch.

        def coarse(velocity, reynolds):  # few steps, or another viscosity, or a lower order
            return step(velocity, reynolds / 2)

        tangent = zo.tangents.ModelTangent(coarse)

    It learns nothing. Its values are no predictions (`expect`), so they may be off by a constant. They are
    used where no box runs, as by a population's surrogate; a replay begins at the box's answers. Rows must
    not interact.

    Cost: for a VJP a forward and a backward pass of the model on the rows of a call; for J d, which checks
    ask for, a further backward pass. Memory: the model's graph.

    Args:
        model: `model(*arrays) -> Tensor` or a tuple: all inputs of the box in their order, `(rows, *shape)`,
            to its differentiable outputs in their order. It has to be differentiable twice by the
            differentiable inputs, as code of torch's own functions is. It runs on the device and in the
            dtype of the box's inputs.
        name: the model's name in messages; None for the function's own.

    Raises:
        ConfigurationError: the model cannot be called; when it is first used, it gives other shapes than
            the box, or nothing that has a gradient.
    """

    learns = False

    def __init__(self, model: Callable[..., Any], name: str | None = None) -> None:
        if not callable(model):
            raise ConfigurationError(
                f"ModelTangent, model: expected a function of tensors, got {model!r}. Give one that takes "
                "the box's inputs."
            )
        self.model, self._name = model, name

    def at(self, rows: CallPairs, values: Callable[[], Tensor] | None = None) -> Linearised:
        """The model at these rows.

        Args:
            rows: the rows of a call.
            values: gives the model's outputs there, where these are known; None to run it.
        """
        return _ModelAt(rows, self, values)

    def expect(self, rows: CallPairs) -> Tensor | None:
        """None: trust is not lost over a model that is off by a constant."""
        return None

    def outputs(self, rows: CallPairs, z: Tensor) -> Tensor:
        """The model's differentiable outputs, `(rows, size_in)` to `(rows, size_out)`.

        Raises:
            ConfigurationError: it gives other shapes than the box, or nothing that has a gradient.
        """
        pieces = zip(rows.inputs, z.split(sizes(rows.inputs), dim=-1), strict=True)
        moving = iter(
            [piece.reshape(-1, *spec.shape).to(spec.torch_dtype or z.dtype) for spec, piece in pieces]
        )
        arrays = [next(moving) if array is None else array for array in rows.others] or list(moving)
        answer = self.model(*arrays)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        shapes = [(len(z), *spec.shape) for spec in rows.outputs]
        if [tuple(getattr(output, "shape", ())) for output in outputs] != shapes:
            kinds = [tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__ for out in outputs]
            raise ConfigurationError(
                f"{self!r}: expected the box's differentiable outputs, {shapes}, got {kinds}. See that the "
                "model takes all inputs of the box in their order, rows first, and gives what the box gives."
            )
        if z.requires_grad and not any(output.requires_grad for output in outputs):
            raise ConfigurationError(
                f"{self!r}: expected outputs that follow the inputs by torch's autograd, got some without a "
                "gradient. A black box has none: give the differentiable function inside of it."
            )
        return torch.cat(
            [output.flatten(1) if output.ndim > 1 else output[:, None] for output in outputs], -1
        ).to(z)

    def __repr__(self) -> str:
        """The model's name; its address would change from run to run."""
        return f"ModelTangent({self._name or getattr(self.model, '__qualname__', type(self.model).__name__)})"


class _ModelAt(Linearised):
    """A model of the user's at the rows of a call."""

    def __init__(self, rows: CallPairs, tangent: ModelTangent, values: Callable[[], Tensor] | None) -> None:
        super().__init__(rows)
        self._outputs, self._values = tangent.outputs, values

    @cached_property
    def values(self) -> Tensor:
        """The model's outputs, asked once."""
        with torch.no_grad():
            return self._outputs(self.rows, self.rows.z) if self._values is None else self._values()

    def push(self, d: Tensor) -> Tensor:
        """The model's J d."""
        return pushed_forward(partial(self._outputs, self.rows), self.rows.z, d)

    def pull(self, v: Tensor) -> Tensor:
        """The model's J^T v."""
        return pulled_back(partial(self._outputs, self.rows), self.rows.z, v)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """Return the change of the model's outputs."""
        return self._outputs(replace(self.rows, others=others), z) - self.values


def _differentiable_once(gradient: Tensor) -> bool:
    """Say whether another program's derivative is in the graph of a gradient: torch ends it there."""
    nodes, visited = [gradient.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in visited:
            if type(node).__name__ == ENDS:
                return True
            visited.add(node)
            nodes += [further for further, _ in node.next_functions]
    return False


@torch.no_grad()
def _differenced(function: RowFunction, z: Tensor, d: Tensor) -> Tensor:
    """J d by central differences, `(rows, size_out)`."""
    length = d.norm(dim=-1, keepdim=True)
    step = torch.finfo(z.dtype).eps ** (1 / 3) * z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    move = torch.where(length > 0, step / length, 0.0)
    ahead, behind = function(z + move * d), function(z - move * d)
    return torch.where(length > 0, (ahead - behind) / (2 * move), 0.0)


def pulled_back(function: RowFunction, z: Tensor, cotangent: Tensor) -> Tensor:
    """J^T v: a forward and a backward pass.

    Args:
        function: a differentiable function; its parameters get no gradient.
        z: the point of the derivative, `(rows, size_in)`.
        cotangent: the gradient v of the outputs, `(rows, size_out)`.

    Returns:
        `(rows, size_in)`.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(function(z), z, cotangent, materialize_grads=True)[0]


def pushed_forward(function: RowFunction, z: Tensor, d: Tensor) -> Tensor:
    """J d: a forward, a backward, and a pass through the latter.

    J^T v is linear in v, and its derivative by v, transposed, is J. Forward mode would cost less, but not all
    of torch has it: `grid_sample`, which solvers advect with, has not. Where a function is differentiable
    only once, as a server's is, central differences are taken: two evaluations.

    Args:
        function: a function that is differentiable twice, as torch's own functions are, or once.
        z: the point of the derivative, `(rows, size_in)`.
        d: changes of the input, `(rows, size_in)`.

    Returns:
        `(rows, size_out)`.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        y = function(z)
        v = torch.zeros_like(y, requires_grad=True)
        back = torch.autograd.grad(y, z, v, create_graph=True, materialize_grads=True)[0]
        if not back.requires_grad:  # the function does not depend on z
            return torch.zeros_like(y)
        if _differentiable_once(back):  # torch would say zero, without an error
            return _differenced(function, z, d)
        return torch.autograd.grad(back, v, d, materialize_grads=True)[0].to(d)
