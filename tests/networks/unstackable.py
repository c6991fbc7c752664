"""Networks that no stack of variants can serve: rows second, weights read outside of their layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Unstackable:
    """A network that takes `(4, 5, 3)`, and what is said of it.

    Attributes:
        make: makes it.
        word: of the warning of who asked for a stack.
        objective: `objective(network, batch)`; None for the mean square of the output.
    """

    make: Callable[[], nn.Module]
    word: str = ""
    objective: Callable[[nn.Module, Tensor], Tensor] | None = None


class Transposing(nn.Module):
    """Takes its rows second, as a recurrent layer without batch_first does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.inner(x.transpose(0, 1)).transpose(0, 1))


class ReadsWeight(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return x @ self.inner.weight.tanh()


class Recurrent(nn.Module):
    """A layer with batch first, whose kernel has no rule for stacks."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 2, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


class Asleep(nn.Module):
    """Reads a layer's weight outside the layer, on a path that small inputs do not take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x) + nn.functional.linear(x.clamp_min(50) - 50, self.gate.weight)


class Attending(nn.Module):
    """With a mask as long as a sequence, which a stack may take for rows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=mask)[0]


def weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(3, 3))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.Linear(3, 3))


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return F.dropout(self.inner(x), 0.5, self.training)


def fixed_rows(network, batch):
    return (network(batch) - torch.arange(4.0)[:, None, None]).square().flatten(1).mean(dim=1)


def before_others(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2))


UNSTACKABLE = {
    "rows second": Unstackable(Transposing, "rows first"),
    "reads a weight": Unstackable(ReadsWeight, "inner.weight"),
    "recurrent": Unstackable(Recurrent),
    "a fixed number of rows": Unstackable(lambda: nn.Linear(3, 1), "RuntimeError", fixed_rows),
    "weight norm by hooks": Unstackable(lambda: before_others(weight_normed())),
    "scripted": Unstackable(lambda: before_others(scripted())),
    "dropout by the function": Unstackable(lambda: before_others(FunctionalDropout())),
}
