"""Factors and classes to pixels, for a block of images at once."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.image_classification.data.shapes.factors import FRAGMENTS, Factors
from tasks.image_classification.data.shapes.outlines import NAMES, inside
from zo.estimators import Key


def draw(labels: Tensor, factors: Factors, key: Key, side: int) -> Tensor:
    """Images `(rows, 3, side, side)`, uint8, of the outlines of `labels` `(rows,)`."""
    axis = torch.arange(side) + 0.5 - side / 2
    y, x = (grid[None] for grid in torch.meshgrid(axis, axis, indexing="ij"))
    background, surface = (_textured(factors, which, x, y) for which in (0, 1))
    image = background
    for fragment in range(FRAGMENTS // 2):
        image = _over(image, factors.fragments[:, fragment], x, y)
    image = torch.lerp(image, surface, _outline(labels, factors, x, y)[:, None])
    for fragment in range(FRAGMENTS // 2, FRAGMENTS):
        image = _over(image, factors.fragments[:, fragment], x, y)
    noise = torch.randn(image.shape, generator=key.generator(2))
    image = image + factors.noise.view(-1, 1, 1, 1) * noise
    return (image * 255).round_().clamp_(0, 255).to(torch.uint8)


def _textured(factors: Factors, which: int, x: Tensor, y: Tensor) -> Tensor:
    """Background (0) or the outline's surface (1): its colour and texture, `(rows, 3, side, side)`."""
    waves = factors.waves[:, which, :, :, None, None]
    first, second, third = (
        torch.sin(waves[:, wave, 0] * x + waves[:, wave, 1] * y + waves[:, wave, 2]) for wave in range(3)
    )
    kind = factors.kinds[:, which].view(-1, 1, 1)
    zero = torch.zeros(())
    texture = torch.where(kind == 1, first, zero)  # stripes
    texture = torch.where(kind == 2, (first * second * 4).clamp(-1, 1), texture)  # checks
    texture = torch.where(kind == 3, (first + second + third) / 3, texture)  # blobs
    colour, ripple = (part[:, which, :, None, None] for part in (factors.colours, factors.ripples))
    return colour + ripple * texture[:, None]


def _outline(labels: Tensor, factors: Factors, x: Tensor, y: Tensor) -> Tensor:
    """How much of each pixel the outline covers, `(rows, side, side)`, 0 to 1."""
    covered = torch.empty(len(labels), *x.shape[1:])
    for label, name in enumerate(NAMES):
        rows = torch.nonzero(labels == label).flatten()
        radius, stretch = factors.radius[rows].view(-1, 1, 1), factors.stretch[rows].view(-1, 1, 1)
        u, v = _turned(x, y, factors.centre[rows], factors.turn[rows])
        distance = inside(name, u / (radius * stretch), v * stretch / radius) * radius
        covered[rows] = (distance + 0.5).clamp_(0, 1)
    return covered


def _over(image: Tensor, fragment: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The images with one fragment each, an ellipse `(rows, 9)`, laid over them where it is there."""
    u, v = _turned(x, y, fragment[:, :2], fragment[:, 4])
    long, short = fragment[:, 2].view(-1, 1, 1), fragment[:, 3].view(-1, 1, 1)
    # near the edge this is about the distance to it
    distance = (1 - torch.hypot(u / long, v / short)) * torch.minimum(long, short)
    covered = (distance + 0.5).clamp_(0, 1) * fragment[:, 8].view(-1, 1, 1)
    return torch.lerp(image, fragment[:, 5:8, None, None].expand_as(image), covered[:, None])


def _turned(x: Tensor, y: Tensor, centre: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame at `centre` `(rows, 2)`, turned by `turn` `(rows,)`."""
    cosine, sine = turn.cos().view(-1, 1, 1), turn.sin().view(-1, 1, 1)
    x, y = x - centre[:, 0].view(-1, 1, 1), y - centre[:, 1].view(-1, 1, 1)
    return cosine * x + sine * y, cosine * y - sine * x
