"""Black boxes made of a torch function, so that autograd knows what `differentiable` has to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction


class FromTorch(BlackBoxFunction):
    """A function of tensors with rows first, hidden behind the contract; remembers its calls."""

    arrays = "torch"

    def __init__(
        self, function: Callable[..., Any], inputs: tuple[ArraySpec, ...], outputs: tuple[ArraySpec, ...]
    ) -> None:
        super().__init__(failures="keep")
        self.function = function
        self.inputs = inputs
        self.outputs = outputs
        self.asked: list[tuple[Tensor, ...]] = []

    def evaluate_rows(self, *arrays: Tensor) -> Any:
        self.asked.append(tuple(array.clone() for array in arrays))
        return self.function(*arrays)


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ weights(6, 4)


def quadratic(x: Tensor) -> Tensor:
    x = x.flatten(1)
    return (x @ weights(6, 6, seed=1)) * (x @ weights(6, 6, seed=2)) + x


def nonlinear(x: Tensor) -> Tensor:
    """Two layers that mix, and grow: 6 -> 9."""
    return torch.exp(0.3 * torch.sin(x.flatten(1) @ weights(6, 7, seed=3)) @ weights(7, 9, seed=4))


def make_box(function: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (2, 3)) -> FromTorch:
    """Rows `(2, 3)` in, whatever the function gives out."""
    out = function(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    return FromTorch(function, (ArraySpec("x", shape=shape),), (ArraySpec("y", shape=tuple(out)),))
