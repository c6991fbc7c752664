"""What is drawn for each image without a look at its class: pose, colours, textures, clutter, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zo.estimators import Key

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
    """Classes `(rows,)`, equally likely; from a generator of their own: no factor can hang on them."""
    return torch.randint(classes, (rows,), generator=key.generator(0))


def draw_factors(key: Key, rows: int, side: int) -> Factors:
    """All that is drawn for a block of images of `side` pixels, without a look at their classes."""
    generator = key.generator(1)

    def uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
        return torch.empty(rows, *shape).uniform_(*bounds, generator=generator)

    def directions(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, *shape, 3, generator=generator), dim=-1)

    half, stretch = uniform(CONTRAST) / 2, math.log1p(STRETCH)
    apart = half[:, None] * directions().abs()  # the outline is the lighter one
    # the middle of the two colours leaves room for both; what still leaves 0 to 1 is clipped
    middle = uniform((0.3, 0.7), 3)
    sign = torch.tensor([-1.0, 1.0]).view(1, 2, 1)
    angles, lengths = uniform((0, 2 * math.pi), 2, WAVES), 2 * math.pi / uniform(PERIOD, 2, WAVES)
    phases = uniform((0, 2 * math.pi), 2, WAVES)
    there = torch.arange(FRAGMENTS).lt(torch.randint(FRAGMENTS + 1, (rows, 1), generator=generator))
    order = torch.rand(rows, FRAGMENTS, generator=generator).argsort(1)  # behind and in front alike
    return Factors(
        turn=uniform((-TURN, TURN)),
        radius=uniform(RADIUS),
        stretch=uniform((-stretch, stretch)).exp(),
        centre=uniform((-CENTRE, CENTRE), 2),
        colours=middle[:, None] + sign * apart[:, None],
        ripples=uniform(RIPPLE, 2, 1) * directions(2),
        kinds=torch.randint(4, (rows, 2), generator=generator),
        waves=torch.stack([lengths * angles.cos(), lengths * angles.sin(), phases], dim=-1),
        fragments=torch.cat(
            [
                uniform((-side / 2, side / 2), FRAGMENTS, 2),
                uniform(FRAGMENT, FRAGMENTS, 2),
                uniform((0, math.pi), FRAGMENTS, 1),
                uniform((0, 1), FRAGMENTS, 3),
                there.gather(1, order).float()[..., None],
            ],
            dim=-1,
        ),
        noise=uniform(NOISE),
    )
