"""Classifiers that tests name on the command line."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters import TorchModule


class Blobs(nn.Module):
    """Logits from how bright each third of the image is; steep, so that noise matters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(rows, channels, 6, 6)` to `(rows, 3)`."""
        return 12 * images.unflatten(2, (3, 2)).mean(dim=(1, 3, 4))


def blobs() -> TorchModule:
    """The classifier of `small.images`."""
    return TorchModule(Blobs(), [ArraySpec("image", (1, 6, 6))], [ArraySpec("logits", (3,))])


def turned_blobs() -> TorchModule:
    """The classifier of `small.images` turned upside down: only the middle class is right."""

    class Turned(Blobs):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.flip(2))

    return TorchModule(Turned(), [ArraySpec("image", (1, 6, 6))], [ArraySpec("logits", (3,))])


def colour_blobs() -> TorchModule:
    """Of colour images."""
    return TorchModule(Blobs(), [ArraySpec("image", (3, 6, 6))], [ArraySpec("logits", (3,))])


def two_classes() -> TorchModule:
    """One class fewer than the images have."""

    class Two(Blobs):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images)[:, :2]

    return TorchModule(Two(), [ArraySpec("image", (1, 6, 6))], [ArraySpec("logits", (2,))])


class TenLabels(BlackBoxFunction):
    """Labels up to 9, of images of three classes."""

    inputs = (ArraySpec("image", (1, 6, 6)),)
    outputs = (ArraySpec("label", ()),)

    def evaluate_rows(self, image: np.ndarray) -> np.ndarray:
        """`(rows, 1, 6, 6)` to `(rows,)`."""
        return np.minimum(np.floor(20 * image.mean(axis=(1, 2, 3))), 9).astype(np.float32)
