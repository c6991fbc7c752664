"""Classifiers whose smoothed version is known, and images for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blackbox import ArraySpec, BlackBoxFunction
from tasks.applications.denoised_smoothing.certification import FAILED, BaseClassifier

NORMAL = torch.tensor([0.6, 0.8])  # of the half-space, a unit vector


def half_space(images: Tensor) -> Tensor:
    """Class 1 where 0.6 x + 0.8 y > 0.7: the smoothed one's robust radius is the distance to the plane."""
    return (images.reshape(len(images), 2) @ NORMAL > 0.7).long()


def at_distance(distance: float, count: int) -> Tensor:
    """Images `(count, 1, 1, 2)` at that signed distance from the plane."""
    point = torch.tensor([0.5, 0.5]) + distance * NORMAL
    return point.reshape(1, 1, 1, 2).expand(count, 1, 1, 2)


def failing_half_space(images: Tensor) -> Tensor:
    """The same, but where it would answer 0 there is no answer."""
    labels = half_space(images)
    return torch.where(labels == 1, labels, FAILED)


def by_chance(images: Tensor) -> Tensor:
    """Two classes that have nothing to do with the image: which, hangs on digits far behind the point."""
    return (images.double().reshape(len(images), -1).sum(1) * 1e5).floor().long() % 2


def base(labels: Any, classes: int = 2) -> BaseClassifier:
    return BaseClassifier(labels, classes)


class Linear(BlackBoxFunction):
    """Logits `(3,)` of an image `(1, 4, 4)`, linear; rows independent, to the bit."""

    inputs = (ArraySpec("image", (1, 4, 4)),)
    outputs = (ArraySpec("logits", (3,)),)

    def __init__(self, failures: Any = "keep") -> None:
        super().__init__(failures=failures)
        self.weights = np.random.default_rng(3).normal(size=(3, 16))

    def evaluate_rows(self, image: Any) -> Any:
        # summed by the row: a product of matrices may round otherwise in another batch
        return (image.reshape(len(image), 1, 16).astype(np.float64) * self.weights).sum(axis=2)


class Label(BlackBoxFunction):
    """The label alone, as a whole number."""

    inputs = (ArraySpec("image", (1, 4, 4)),)
    outputs = (ArraySpec("label", (), "int64"),)

    def evaluate_rows(self, image: Any) -> Any:
        return Linear().evaluate_rows(image).argmax(axis=1)


class Denoiser(nn.Module):
    """Small, with batch norm, on which rows would hang in training mode; weights from a seed."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)
        )
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.net(x)


def pictures(count: int) -> Tensor:
    """Images `(count, 1, 4, 4)` in [0, 1]."""
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
