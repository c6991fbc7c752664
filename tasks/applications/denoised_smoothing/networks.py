"""The denoiser (DnCNN), autoencoders, the networks of students, and the losses that train them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, int, int]  # channels, height, width of an image

LAST = 0.1
"""What the first weights of the last convolution are multiplied by. Small, so that training starts close to
the identity. Not zero, as often advised for residual branches: everything before it would then have a
gradient of exactly zero, the differences of zeroth-order methods there would be rounding alone, and pruning
scores of all layers but the last would be zero, their ranking one of ties."""

PLACES = 4  # along each axis that a student of larger images has left in front of its last layer
FLAT = 1024  # numbers of an image up to which a student is a multilayer perceptron


class DnCNN(nn.Module):
    """Predicts the noise and takes it off, x - net(x); Zhang et al. (2017), IEEE Trans. Image Process. 26.

    With batch norm, depth 17 and width 64 it has 558,400 parameters for colour and 556,096 for grey. The
    first convolution has a bias; convolutions before a batch norm, and the last one, have none. Without batch
    norm the ones in between have a bias.

    Args:
        channels: the channels of an image.
        depth: the number of convolutions, at least 2.
        width: the channels between them.
        batch_norm: whether the convolutions between the first and the last are followed by one.
    """

    def __init__(self, channels: int, depth: int = 17, width: int = 64, batch_norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
        last = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        with torch.no_grad():
            last.weight *= LAST
        self.net = nn.Sequential(*layers, last)

    def forward(self, noisy: Tensor) -> Tensor:
        """`(rows, channels, height, width)` to the same; not clamped."""
        return noisy - self.net(noisy)


def encoder(shape: Shape, widths: Sequence[int], latent: int, convolutions: bool) -> nn.Module:
    """Make a network from images `(rows, *shape)` to latent vectors `(rows, size)`.

    Args:
        shape: the shape of an image.
        widths: the widths of the hidden layers: features of linear layers, or channels of convolutions of
            stride 2.
        latent: the size of the latent vector, or its channels where there are convolutions.
        convolutions: whether the layers are convolutions.
    """
    if not convolutions:
        return nn.Sequential(nn.Flatten(), _linear((math.prod(shape), *widths, latent)))
    layers: list[nn.Module] = []
    for channels, width in zip((shape[0], *widths[:-1]), widths, strict=True):
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], latent, 1), nn.Flatten())


def decoder(shape: Shape, widths: Sequence[int], latent: int, convolutions: bool) -> nn.Module:
    """Make a network from latent vectors `(rows, size)` to images `(rows, *shape)` in [0, 1]."""
    if not convolutions:
        wide = _linear((latent, *reversed(widths), math.prod(shape)))
        return nn.Sequential(wide, nn.Sigmoid(), nn.Unflatten(1, shape))
    height, width = (size // 2 ** len(widths) for size in shape[1:])
    layers: list[nn.Module] = [nn.Unflatten(1, (latent, height, width)), nn.Conv2d(latent, widths[-1], 1)]
    for in_channels, out_channels in zip(reversed(widths), (*reversed(widths[:-1]), shape[0]), strict=True):
        layers += [nn.ReLU(), nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)]
    return nn.Sequential(*layers, nn.Sigmoid())


def latent_size(shape: Shape, widths: Sequence[int], latent: int, convolutions: bool) -> int:
    """Numbers of a latent vector."""
    if not convolutions:
        return latent
    return latent * math.prod(size // 2 ** len(widths) for size in shape[1:])


def student(shape: Shape, classes: int, width: int) -> nn.Module:
    """A small classifier `(rows, *shape)` to scores `(rows, classes)`.

    Of small images two hidden layers of `width`; of larger ones convolutions of stride 2, up to `width`
    channels, until 4 x 4 places are left: which of them is looked at counts.
    """
    if math.prod(shape) <= FLAT:
        return nn.Sequential(nn.Flatten(), _linear((math.prod(shape), width, width, classes)))
    layers: list[nn.Module] = []
    channels, outputs, size = shape[0], max(8, width // 8), min(shape[1:])
    while size > PLACES:
        layers += [nn.Conv2d(channels, outputs, 3, stride=2, padding=1), nn.ReLU()]
        channels, outputs, size = outputs, min(width, 2 * outputs), size // 2
    pool = nn.AdaptiveAvgPool2d(PLACES), nn.Flatten()
    return nn.Sequential(*layers, *pool, nn.Linear(channels * PLACES**2, classes))


def _linear(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


UNKNOWN = -1  # a target that is not known: the classifier failed on the clean image


def box_loss(scores: Tensor, target: Tensor, kind: str) -> Tensor:
    """One loss a row, `(rows,)`; NaN where the classifier failed.

    Cross-entropy from the target, whose derivative is the difference of probabilities. Of labels alone
    there is no logarithm to be taken: the loss is 1 - y[target], whether y is a one-hot vector or a student's
    probabilities.

    Args:
        scores: `(rows, classes)`; logits, log-probabilities, or for labels one-hot vectors.
        target: `(rows,)`, the classifier's own prediction on the clean image, or the true label.
        kind: "logits", "probabilities" or "labels".
    """
    labels = target.clamp(min=0)
    if kind == "labels":
        losses = 1 - scores.gather(1, labels[:, None]).squeeze(1)
    else:
        losses = functional.cross_entropy(scores, labels, reduction="none")
    return torch.where(target == UNKNOWN, torch.nan, losses)


def image_loss(denoised: Tensor, clean: Tensor) -> Tensor:
    """Square error of an image, summed over its pixels: `(rows,)`."""
    return (denoised - clean).square().flatten(1).sum(dim=1)


def predictions(scores: Tensor) -> Tensor:
    """The class of each row, `(rows,)`, `UNKNOWN` where the classifier failed."""
    good = scores.isfinite().all(dim=1)
    return torch.where(good, scores.nan_to_num().argmax(dim=1), UNKNOWN)
