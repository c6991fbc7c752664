"""Autograd through a box that knows its vector-Jacobian products, for a problem's `reference`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from blackbox.function import BlackBoxFunction
from blackbox.ledger import Ledger

PullBack = Callable[[list[np.ndarray], dict[int, np.ndarray], list[int]], dict[int, np.ndarray]]
"""From inputs `(rows, *shape)`, gradients `(rows, *shape)` by the place of their output, and the places of
the inputs wanted, to the gradients `(rows, *shape)` of these."""


def with_derivative(box: BlackBoxFunction, pull_back: PullBack, arrays: tuple[Any, ...]) -> Any:
    """The box's outputs for these arrays, differentiable by its own vector-Jacobian products.

    The rows are a reference's: they do not count in the box's ledger, since the training that uses the
    reference counts them.

    Args:
        box: the box that is called, with its policy for failed rows.
        pull_back: its vector-Jacobian products. A row at which no gradient arrives gets zeros, whatever these
            give: the outputs of a failed row have no derivative.
        arrays: the inputs of the box.
    """
    twin = type(box).__new__(type(box))  # not copy(), which would load a file or a program anew
    vars(twin).update({**vars(box), "_ledger": Ledger()})
    if not all(isinstance(array, Tensor) for array in arrays) or len(arrays) != len(box.inputs):
        return twin.call(*arrays)  # NumPy arrays carry no gradient; all else is the box's to refuse
    pairs = zip(box.inputs, arrays, strict=True)
    outputs = _Call.apply(twin, pull_back, *(a if spec.differentiable else a.detach() for spec, a in pairs))
    return outputs[0] if len(outputs) == 1 else outputs


class _Call(Function):
    """`apply(box, pull_back, *inputs)` gives a tuple with the box's outputs."""

    @staticmethod
    def forward(ctx: Any, box: BlackBoxFunction, pull_back: PullBack, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs."""
        answer = box.call(*inputs)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        fixed = [o for spec, o in zip(box.outputs, outputs, strict=True) if not spec.differentiable]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)  # None tells an output that the loss does not use
        ctx.save_for_backward(*inputs)
        ctx.box, ctx.pull_back = box, pull_back
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Vector-Jacobian products of the rows at which a gradient arrives."""
        inputs: tuple[Tensor, ...] = ctx.saved_tensors
        needed = [place for place, needs in enumerate(ctx.needs_input_grad[2:]) if needs]
        rows = [t.reshape(-1, *spec.shape) for spec, t in zip(ctx.box.inputs, inputs, strict=True)]
        arriving = {
            place: cotangent.reshape(-1, *ctx.box.outputs[place].shape)
            for place, cotangent in enumerate(cotangents)
            if cotangent is not None
        }
        mask = torch.zeros(len(rows[0]), dtype=torch.bool, device=rows[0].device)
        for cotangent in arriving.values():
            mask |= (cotangent.flatten(1) != 0).any(dim=1) if cotangent.ndim > 1 else cotangent != 0
        gradients: list[Tensor | None] = [None] * len(rows)
        for place in needed:
            gradients[place] = torch.zeros_like(rows[place])
        if mask.any():
            products = ctx.pull_back(
                [_numpy(t[mask]) for t in rows],
                {place: _numpy(cotangent[mask]) for place, cotangent in arriving.items()},
                needed,
            )
            for place in needed:
                part = torch.from_numpy(np.ascontiguousarray(products[place]))
                gradients[place][mask] = part.to(rows[place])  # pyright: ignore[reportOptionalSubscript]
        shaped = (None if g is None else g.reshape(t.shape) for g, t in zip(gradients, inputs, strict=True))
        return None, None, *shaped


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
