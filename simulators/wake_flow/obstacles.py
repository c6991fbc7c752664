"""What stands in the stream: cylinders and boxes, and whether a grid can hold them.

Several of them stand for their union; they may touch and overlap. Lengths are those of `geometry`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phi.geom import Box as PhiBox
from phi.geom import Geometry, Sphere
from phi.math import vec

from blackbox.checks import is_finite
from blackbox.errors import ConfigurationError

Point = tuple[float, float]  # across, along
FEWEST_CELLS = 1.5  # across an obstacle: on fewer it may fall between the centres of the cells


@dataclass(frozen=True)
class Cylinder:
    """A cylinder across the plane of the flow.

    Args:
        centre: its axis.
        radius: above 0.

    Raises:
        ConfigurationError: a value is not finite, or the radius not above 0.
    """

    centre: Point
    radius: float

    def __post_init__(self) -> None:
        """Refuse what is no circle."""
        object.__setattr__(self, "centre", _point("Cylinder, centre", self.centre))
        if not (is_finite(self.radius) and self.radius > 0):
            raise ConfigurationError(
                f"Cylinder, radius: expected a length above 0, got {self.radius!r}. "
                "The published cylinder has 10, the channel a width of 100."
            )

    @property
    def lower(self) -> Point:
        """Its lowest coordinates."""
        return self.centre[0] - self.radius, self.centre[1] - self.radius

    @property
    def upper(self) -> Point:
        """Its highest coordinates."""
        return self.centre[0] + self.radius, self.centre[1] + self.radius

    @property
    def geometry(self) -> Geometry:
        """PhiFlow's."""
        sphere: Any = Sphere  # its metaclass and stub want tensors
        return sphere(vec(x=self.centre[0], y=self.centre[1]), radius=self.radius)


@dataclass(frozen=True)
class Box:
    """A rectangle along the axes.

    Args:
        lower: the corner with the lowest coordinates.
        upper: the corner with the highest.

    Raises:
        ConfigurationError: a value is not finite, or a corner is not above the other in both directions.
    """

    lower: Point
    upper: Point

    def __post_init__(self) -> None:
        """Refuse what has no area."""
        for name in ("lower", "upper"):
            object.__setattr__(self, name, _point(f"Box, {name}", getattr(self, name)))
        if not all(low < high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ConfigurationError(
                f"Box, upper: expected a corner above lower {self.lower} in both directions, "
                f"got {self.upper}. Exchange the values."
            )

    @property
    def geometry(self) -> Geometry:
        """PhiFlow's."""
        box: Any = PhiBox
        return box(vec(x=self.lower[0], y=self.lower[1]), vec(x=self.upper[0], y=self.upper[1]))


Obstacle = Cylinder | Box


def check_obstacles(obstacles: object, lengths: Point, cell: float) -> tuple[Obstacle, ...]:
    """The obstacles as a tuple, each known to be one, inside the domain, and seen by the grid.

    Args:
        obstacles: a sequence of them.
        lengths: the domain's, from 0.
        cell: side of a grid's cell.

    Raises:
        ConfigurationError: something else is there; or one is outside the domain, or touches its edge
            (nearer than a cell), or has fewer than 1.5 cells across. The message gives its place.
    """
    if isinstance(obstacles, str) or not isinstance(obstacles, Sequence):
        raise ConfigurationError(
            f"Channel, obstacles: expected a sequence of Cylinder and Box, got {obstacles!r}. "
            "Put a single one into a tuple; () is for none."
        )
    for place, obstacle in enumerate(obstacles):
        name = f"Channel, obstacles[{place}]"
        if not isinstance(obstacle, Cylinder | Box):
            raise ConfigurationError(
                f"{name}: expected a Cylinder or a Box of simulators.wake_flow, got {obstacle!r}."
            )
        _check_place(name, obstacle, lengths, cell)
        _check_size(name, obstacle, lengths[0], cell)
    return tuple(obstacles)


def _check_place(name: str, obstacle: Obstacle, lengths: Point, cell: float) -> None:
    room = min(
        min(low, length - high)
        for low, high, length in zip(obstacle.lower, obstacle.upper, lengths, strict=True)
    )
    extent = f"it reaches from {obstacle.lower} to {obstacle.upper}"
    domain = f"the domain from (0, 0) to ({lengths[0]:g}, {lengths[1]:g})"
    if room < 0:
        raise ConfigurationError(
            f"{name}: expected an obstacle inside {domain}, got {obstacle}: {extent}. Move it or shrink it."
        )
    if room < cell:
        raise ConfigurationError(
            f"{name}: expected a cell ({cell:g}) or more between the obstacle and the edge of {domain}, "
            f"got {obstacle}, which touches it on this grid: {extent}. Move it inwards, or take a finer grid."
        )


def _check_size(name: str, obstacle: Obstacle, width: float, cell: float) -> None:
    across = min(high - low for low, high in zip(obstacle.lower, obstacle.upper, strict=True))
    what = "cells per diameter" if isinstance(obstacle, Cylinder) else "cells across the shorter side"
    if across < FEWEST_CELLS * cell:
        raise ConfigurationError(
            f"{name}: expected {FEWEST_CELLS:g} {what} or more, got {across / cell:.2g}: {obstacle} is too "
            f"small for cells of {cell:g}. Take a grid of {math.ceil(FEWEST_CELLS * width / across)} cells "
            "or more in width, or a larger obstacle."
        )


def _point(name: str, value: Any) -> Point:
    sound = isinstance(value, Sequence) and len(value) == 2 and all(is_finite(v) for v in value)
    if not sound:
        raise ConfigurationError(
            f"{name}: expected two finite numbers (across, along), got {value!r}. "
            "Lengths count from the inflow's left corner."
        )
    return float(value[0]), float(value[1])
