"""The corrector: a small convolutional network that adds to the solver's velocity what its grid lost."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Corrector(nn.Module):
    """Two 5 x 5 convolutions from (u, v, Re) to a correction of (u, v).

    As in Solver-in-the-Loop (Um et al. 2020): inputs are u, v over the standard deviation of the
    speed, and a constant channel of Re over its own; the result times the former is added to the
    velocity. The wall's faces (first column of u) are not corrected.

    Args:
        channels: hidden channels.
        velocity_scale: standard deviation of the speed in the training data.
        reynolds_scale: standard deviation of the training Reynolds numbers.
    """

    def __init__(self, channels: int, velocity_scale: float, reynolds_scale: float) -> None:
        super().__init__()
        self.velocity_scale = velocity_scale
        self.reynolds_scale = reynolds_scale
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
        constant = (reynolds / self.reynolds_scale).view(-1, 1, 1, 1).expand_as(velocity[:, :1])
        seen = torch.cat([velocity / self.velocity_scale, constant], dim=1)
        correction = self.velocity_scale * self.layers(seen)
        wall = torch.ones_like(velocity[:1])
        wall[:, 0, :, 0] = 0
        return velocity + correction * wall


class NoCorrector(nn.Module):
    """The solver alone (SRC): nothing is added."""

    def forward(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """The velocity as it came."""
        return velocity
