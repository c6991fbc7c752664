"""The corrector: a convolutional network that adds to the solver's velocity the part that its grid lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Scales:
    """The scales that normalise the network's inputs and output.

    Attributes:
        velocity: standard deviation of the speed over the training flows.
        reynolds: standard deviation of the training Reynolds numbers.
        correction: standard deviation of the error of one solver step on the training flows.
    """

    velocity: float
    reynolds: float
    correction: float


class Corrector(nn.Module):
    """A network from (u, v, Re) to a correction of (u, v).

    As in Solver-in-the-Loop (Um et al. 2020) inputs are u, v over the standard deviation of the
    speed, and a constant channel of Re over its own. Unlike there, the output is in units of the
    correction that is to be learned, not of the speed, which is eight times larger: it trains better.
    The wall's faces (first column of u) are not corrected.

    Args:
        layers: the layers from 3 channels to 2 on the same cells: `plain` or `residual`.
        scales: the scales of inputs and output, from the training data.
    """

    def __init__(self, layers: nn.Module, scales: Scales) -> None:
        super().__init__()
        self.scales = scales
        self.layers = layers

    def forward(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """The corrected velocity.

        Args:
            velocity: `(rows, 2, height, width)`, as the solver gave it.
            reynolds: `(rows,)`.

        Returns:
            `(rows, 2, height, width)`.
        """
        constant = (reynolds / self.scales.reynolds).view(-1, 1, 1, 1).expand_as(velocity[:, :1])
        channels = torch.cat([velocity / self.scales.velocity, constant], dim=1)
        correction = self.scales.correction * self.layers(channels)
        wall = torch.ones_like(velocity[:1])
        wall[:, 0, :, 0] = 0
        return velocity + correction * wall


def plain(hidden: Sequence[int]) -> nn.Sequential:
    """5 x 5 convolutions with ReLU between them.

    Hidden channels (8,) make 1,010 weights and (32, 32) 29,666; (32, 64) make the 56,898 of the smaller
    published network (`model_mercury` in the code of Um et al. 2020).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([3, *hidden, 2]):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def residual(channels: int = 32, blocks: int = 5) -> nn.Sequential:
    """The publication's 5 x 5 ResNet (Um et al. 2020): 32 channels and 5 blocks make 260,354 weights.

    With ReLU, as `plain`; published with leaky ones.
    """
    first, last = nn.Conv2d(3, channels, 5, padding=2), nn.Conv2d(channels, 2, 5, padding=2)
    return nn.Sequential(first, nn.ReLU(), *(ResidualBlock(channels) for _ in range(blocks)), last)


class ResidualBlock(nn.Module):
    """ReLU of x plus two 5 x 5 convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 5, padding=2)
        self.second = nn.Conv2d(channels, channels, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """`(rows, channels, height, width)` to the same."""
        return (x + self.second(self.first(x).relu())).relu()


def layers(hidden: Sequence[int], blocks: int = 0) -> nn.Sequential:
    """`plain`, or with blocks `residual` of the one number of channels."""
    if not blocks:
        return plain(hidden)
    (channels,) = hidden
    return residual(channels, blocks)


class NoCorrector(nn.Module):
    """The solver alone (SRC): nothing is added."""

    def forward(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """The velocity as it came."""
        return velocity
