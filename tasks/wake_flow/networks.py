"""The corrector: a small convolutional network that adds to the solver's velocity what its grid lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Scales:
    """What normalises the network's inputs and output.

    Attributes:
        velocity: standard deviation of the speed over the training flows.
        reynolds: standard deviation of the training Reynolds numbers.
        correction: standard deviation of what one solver step misses of the training flows.
    """

    velocity: float
    reynolds: float
    correction: float


class Corrector(nn.Module):
    """Two 5 x 5 convolutions from (u, v, Re) to a correction of (u, v).

    As in Solver-in-the-Loop (Um et al. 2020) inputs are u, v over the standard deviation of the
    speed, and a constant channel of Re over its own. Unlike there, the output is in units of the
    correction that is to be learned, not of the speed, which is eight times larger: it trains better.
    The wall's faces (first column of u) are not corrected.

    Args:
        channels: hidden channels.
        scales: of inputs and output, from the training data.
    """

    def __init__(self, channels: int, scales: Scales) -> None:
        super().__init__()
        self.scales = scales
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 5, padding=2), nn.ReLU(), nn.Conv2d(channels, 2, 5, padding=2)
        )

    def forward(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """The corrected velocity.

        Args:
            velocity: `(rows, 2, height, width)`, as the solver gave it.
            reynolds: `(rows,)`.

        Returns:
            `(rows, 2, height, width)`.
        """
        constant = (reynolds / self.scales.reynolds).view(-1, 1, 1, 1).expand_as(velocity[:, :1])
        seen = torch.cat([velocity / self.scales.velocity, constant], dim=1)
        correction = self.scales.correction * self.layers(seen)
        wall = torch.ones_like(velocity[:1])
        wall[:, 0, :, 0] = 0
        return velocity + correction * wall


class NoCorrector(nn.Module):
    """The solver alone (SRC): nothing is added."""

    def forward(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """The velocity as it came."""
        return velocity
