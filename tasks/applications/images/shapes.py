"""`shapes`: ten outlines on 32 x 32 colour images, drawn by rule, in any number.

The class is the outline. Pose, colours, textures, clutter and noise are drawn without a look at it, so none
of them tells it. It stands in for CIFAR-10 where that is not at hand: the same shapes and the same cost.

An outline is a function of `(x, y)` that is positive inside and, near the edge, about the distance to it.
So that neither area nor place tells the class, each is scaled to the area of the unit disc and centred;
both are computed on a fine grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from zo.estimators import Key

SIDE = 32
BLOCK = 256  # images drawn together: planes of a megabyte stay in the cache


def shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of a seed's endless sequence.

    Image i depends on (seed, i) alone, not on `count`: blocks are drawn whole, each from its own generators.
    Between machines or versions of torch a pixel may differ by one, since sines are rounded otherwise.

    Args:
        count: number of images, at least 1.
        seed: the seed of the sequence, >= 0; other seeds give other images of the same distribution.

    Returns:
        Images `(count, 3, 32, 32)`, uint8, and labels `(count,)`, int64, 0 to 9 as in `NAMES`.
    """
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for block, start in enumerate(range(0, count, BLOCK)):
        rows = min(BLOCK, count - start)
        images[start : start + rows] = draw_block(seed, block)[:rows]
        labels[start : start + rows] = labels_of(seed, block)[:rows]
    return images, labels


def labels_of(seed: int, block: int) -> Tensor:
    """The labels of a block of images, `(BLOCK,)`, without them."""
    return draw_labels(Key(seed, block), BLOCK, len(NAMES))


def draw_block(seed: int, block: int) -> Tensor:
    """A block of images, `(BLOCK, 3, 32, 32)`, uint8."""
    key = Key(seed, block)
    return draw(labels_of(seed, block), draw_factors(key, BLOCK, SIDE), key, SIDE)


Outline: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return 1 - torch.hypot(x, y)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return 0.28 - (torch.hypot(x, y) - 1).abs()


def _square(x: Tensor, y: Tensor) -> Tensor:
    return 1 - torch.maximum(x.abs(), y.abs())


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    slope = math.sqrt(3) / 2
    return 1 - torch.maximum(-y, slope * x.abs() + 0.5 * y)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.minimum(1 - x, 0.34 - y), torch.minimum(0.34 - x, 1 - y))


def _flower(x: Tensor, y: Tensor) -> Tensor:
    return 1 + 0.33 * torch.cos(5 * torch.atan2(y, x)) - torch.hypot(x, y)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(1 - torch.hypot(x, y), torch.hypot(x - 0.55, y) - 0.8)


def _half_disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(1 - torch.hypot(x, y), y)


def _angle(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(1 - torch.maximum(x.abs(), y.abs()), torch.maximum(x, y) - 0.35)


def _bow_tie(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(1 - y.abs(), 0.15 + 0.8 * y.abs() - x.abs())


OUTLINES: dict[str, Outline] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "flower": _flower,
    "crescent": _crescent,
    "half disc": _half_disc,
    "angle": _angle,
    "bow tie": _bow_tie,
}
NAMES = tuple(OUTLINES)

_REACH, _POINTS = 2.1, 1051  # the grid on which area and centroid are measured; all outlines fit in


@cache
def placement(name: str) -> tuple[float, float, float]:
    """Scale that gives the outline the unit disc's area, and its centroid, in the outline's own units."""
    axis = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = OUTLINES[name](x, y) > 0
    area = inside.sum().item() * (2 * _REACH / (_POINTS - 1)) ** 2
    return math.sqrt(area / math.pi), x[inside].mean().item(), y[inside].mean().item()


def inside(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Return points' depth inside the outline of the unit disc's area; negative outside, shaped as `x`."""
    scale, x_mean, y_mean = placement(name)
    return OUTLINES[name](x * scale + x_mean, y * scale + y_mean) / scale


TURN = 0.3  # to either side, in radians
RADIUS = (7.0, 9.0)  # of the disc of the outline's area, in pixels
STRETCH = 0.2  # the outline's axes are scaled by up to 1 + this and its inverse
CENTRE = 3.0  # how far the centre moves from the image's, in pixels, along each axis
CONTRAST = (0.5, 0.75)  # distance of the two surfaces' colours, in RGB of 0 to 1
RIPPLE = (0.0, 0.06)  # how far a texture departs from its surface's colour
PERIOD = (3.0, 12.0)  # of a texture's waves, in pixels
WAVES = 3
FRAGMENTS = 10  # at most; half of them are behind the outline, half in front
FRAGMENT = (0.7, 8.6)  # half axes of a fragment, in pixels
NOISE = (0.0, 0.06)  # deviation of what is added to each pixel


@dataclass(frozen=True)
class Factors:
    """The draws of a block of images.

    Attributes:
        turn: angle of the outline, `(rows,)`, in radians.
        radius: `(rows,)`, in pixels.
        stretch: `(rows,)`: one axis times this, the other divided by it.
        centre: `(rows, 2)`, x and y in pixels from the middle of the image.
        colours: `(rows, 2, 3)` of background and outline, before the texture.
        ripples: `(rows, 2, 3)`: what a texture of value 1 adds to the colours of background and outline.
        kinds: `(rows, 2)`, 0 to 3: plain, stripes, checks, blobs.
        waves: `(rows, 2, WAVES, 3)`: wave vector in radians a pixel, and phase.
        fragments: `(rows, FRAGMENTS, 9)`: x, y, half axes in pixels, angle, colour, and whether it is there.
        noise: `(rows,)`, deviation of the pixels' noise.
    """

    turn: Tensor
    radius: Tensor
    stretch: Tensor
    centre: Tensor
    colours: Tensor
    ripples: Tensor
    kinds: Tensor
    waves: Tensor
    fragments: Tensor
    noise: Tensor


def draw_labels(key: Key, rows: int, classes: int) -> Tensor:
    """Classes `(rows,)`, equally likely; from a generator of their own: no factor can depend on them."""
    return torch.randint(classes, (rows,), generator=key.generator(0))


def draw_factors(key: Key, rows: int, side: int) -> Factors:
    """All that is drawn for a block of images of `side` pixels, without a look at their classes."""
    generator = key.generator(1)

    def uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
        return torch.empty(rows, *shape).uniform_(*bounds, generator=generator)

    def directions(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, *shape, 3, generator=generator), dim=-1)

    half, stretch = uniform(CONTRAST) / 2, math.log1p(STRETCH)
    offset = half[:, None] * directions().abs()  # the outline is the lighter one
    # the middle of the two colours leaves room for both; what still leaves 0 to 1 is clipped
    middle = uniform((0.3, 0.7), 3)
    sign = torch.tensor([-1.0, 1.0]).view(1, 2, 1)
    angles, lengths = uniform((0, 2 * math.pi), 2, WAVES), 2 * math.pi / uniform(PERIOD, 2, WAVES)
    phases = uniform((0, 2 * math.pi), 2, WAVES)
    presence = torch.arange(FRAGMENTS).lt(torch.randint(FRAGMENTS + 1, (rows, 1), generator=generator))
    order = torch.rand(rows, FRAGMENTS, generator=generator).argsort(1)  # behind and in front alike
    return Factors(
        turn=uniform((-TURN, TURN)),
        radius=uniform(RADIUS),
        stretch=uniform((-stretch, stretch)).exp(),
        centre=uniform((-CENTRE, CENTRE), 2),
        colours=middle[:, None] + sign * offset[:, None],
        ripples=uniform(RIPPLE, 2, 1) * directions(2),
        kinds=torch.randint(4, (rows, 2), generator=generator),
        waves=torch.stack([lengths * angles.cos(), lengths * angles.sin(), phases], dim=-1),
        fragments=torch.cat(
            [
                uniform((-side / 2, side / 2), FRAGMENTS, 2),
                uniform(FRAGMENT, FRAGMENTS, 2),
                uniform((0, math.pi), FRAGMENTS, 1),
                uniform((0, 1), FRAGMENTS, 3),
                presence.gather(1, order).float()[..., None],
            ],
            dim=-1,
        ),
        noise=uniform(NOISE),
    )


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
    """Return how much of each pixel the outline covers, `(rows, side, side)`, 0 to 1."""
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
