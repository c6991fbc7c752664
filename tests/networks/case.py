"""A network of the zoo with its batches, its objective, and what its training loop does to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import zo

ROWS = 6
WIDTH = 4
INPUTS = 6  # the first layer of most networks has 24 weights: a chunk of 24 moves nothing else


def weighted_error(output: Tensor, target: Tensor) -> Tensor:
    """Asymmetric in the output, so that no two entries of it can be mistaken for each other: `(rows,)`."""
    y = output.flatten(1)
    return (torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype) * y - target).square().mean(dim=1)


def nothing(network: nn.Module, step: int) -> None:
    """Before a step most training loops change nothing."""


@dataclass(frozen=True)
class Case:
    """A network in float64 and its batches, made anew (and the same) whenever they are asked for.

    Attributes:
        name: for the test's id.
        network: makes it.
        inputs: draws the inputs of a batch, rows first.
        objective: `objective(network, batch)`; None for the `OutputLoss` of `weighted_error`.
        before: what the training loop does to the network before a step.
        steps: how many; three where something wakes at the last, so that no first step has seen it.
        excuse: what will do in the place of a right gradient: "error", one that names what is wrong, or
            "warning", one beside those of a fall-back.
    """

    name: str
    network: Callable[[], nn.Module]
    inputs: Callable[[], Tensor] = lambda: torch.randn(ROWS, INPUTS)
    objective: Callable[[nn.Module, Any], Tensor] | None = None
    before: Callable[[nn.Module, int], None] = nothing
    steps: int = 2
    excuse: str = ""

    def make(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            network = self.network().double()
            for parameter in network.parameters():  # zeros and ones, which norms start with, hide mistakes
                if parameter.requires_grad and parameter.ndim:
                    parameter.data += 0.2 * torch.rand_like(parameter)
        return network.train()

    def batch(self, step: int) -> tuple[Any, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(100 + step)
            inputs = self.inputs()
            double = inputs.double() if inputs.is_floating_point() else inputs
            return double, torch.randn(len(inputs), 1).double()

    @property
    def output_loss(self) -> zo.OutputLoss:
        return zo.OutputLoss(weighted_error)

    def plain(self, network: nn.Module, batch: Any) -> Tensor:
        """The objective as a function that the library cannot look into."""
        if self.objective is not None:
            return self.objective(network, batch)
        inputs, target = batch
        return weighted_error(network(inputs), target)

    def __str__(self) -> str:
        return self.name


def around(*middle: nn.Module) -> nn.Module:
    """Layers with weights in front and behind, so that chunks move weights of one layer beside the others."""
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), *middle, nn.Linear(WIDTH, 2))


def images(channels: int, size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(ROWS, channels, size, size)
