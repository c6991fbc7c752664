"""Products of a torch function's Jacobian, or its transpose, with vectors, row by row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rows = Callable[[Tensor], Tensor]  # `(rows, size_in)` to `(rows, size_out)`, rows apart from each other


def pulled_back(function: Rows, z: Tensor, cotangent: Tensor) -> Tensor:
    """J^T v: a forward and a backward pass.

    Args:
        function: differentiable; its parameters get no gradient.
        z: `(rows, size_in)`.
        cotangent: v, `(rows, size_out)`.

    Returns:
        `(rows, size_in)`.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(function(z), z, cotangent, materialize_grads=True)[0]


def pushed_forward(function: Rows, z: Tensor, d: Tensor) -> Tensor:
    """J d: a forward, a backward, and for each probe a pass through the latter.

    J^T v is linear in v, and its derivative by v, transposed, is J. Forward mode would do with less, but
    not all of torch has it: `grid_sample`, which solvers advect with, has not.

    Args:
        function: differentiable twice, as all is that torch itself is made of.
        z: `(rows, size_in)`.
        d: `(probes, rows, size_in)`.

    Returns:
        `(probes, rows, size_out)`.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        y = function(z)
        v = torch.zeros_like(y, requires_grad=True)
        back = torch.autograd.grad(y, z, v, create_graph=True, materialize_grads=True)[0]
        found = d.new_empty(len(d), *y.shape)
        if not back.requires_grad:  # the function does not depend on z
            return found.zero_()
        for place, change in enumerate(d):
            last = place + 1 == len(d)
            found[place] = torch.autograd.grad(
                back, v, change, retain_graph=not last, materialize_grads=True
            )[0]
        return found
