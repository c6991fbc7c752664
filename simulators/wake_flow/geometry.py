"""The channel and what stands in it: sizes, boundaries, viscosity, and what PhiFlow makes of them.

Lengths are those of the published set-up (Um et al. 2020, "Solver-in-the-Loop", karman-2d): a
domain of 100 x 200, flow along the second axis at speed 1, a cylinder of diameter D = 20 at (50, 50),
which blocks 20 % of the width. The side walls move with the stream and the outlet is open, which
sheds vortices closer to an unbounded cylinder than walls at rest.

PhiFlow counts axes (x, y); arrays here are `(..., height, width)`, so y comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import RLock
from typing import Any

import numpy as np
from phi import field, math
from phi.field import CenteredGrid, Field, StaggeredGrid, resample
from phi.geom import Box as PhiBox
from phi.geom import Geometry, Sphere, union
from phi.math import NUMPY, spatial, vec
from phi.math.extrapolation import BOUNDARY, NONE, ONE, ZERO, Extrapolation, as_extrapolation, combine_sides

from blackbox.errors import ConfigurationError

Point = tuple[float, float]  # across, along

LENGTHS = (100.0, 200.0)  # across, along
CENTRE = (50.0, 50.0)
RADIUS = 10.0
SPEED = 1.0  # of the inflow and of the side walls
LARGEST_REYNOLDS = 1e5
ALONE = RLock()  # held while PhiFlow runs: its precision and default backend are global
SMALLEST_WIDTH = 8  # on fewer cells no cell centre lies inside the cylinder


@dataclass(frozen=True)
class Cylinder:
    """A cylinder across the plane of the flow.

    Attributes:
        centre: its axis.
        radius: its radius.
    """

    centre: Point
    radius: float

    @property
    def geometry(self) -> Geometry:
        """PhiFlow's."""
        sphere: Any = Sphere  # its metaclass and stub want tensors
        return sphere(vec(x=self.centre[0], y=self.centre[1]), radius=self.radius)


@dataclass(frozen=True)
class Box:
    """A rectangle along the axes, such as the window of a balance of momentum.

    Attributes:
        lower: the corner with the lowest coordinates.
        upper: the corner with the highest.
    """

    lower: Point
    upper: Point

    @property
    def geometry(self) -> Geometry:
        """PhiFlow's."""
        box: Any = PhiBox
        return box(vec(x=self.lower[0], y=self.lower[1]), vec(x=self.upper[0], y=self.upper[1]))


CYLINDER = Cylinder(CENTRE, RADIUS)


@dataclass(frozen=True)
class Channel:
    """The geometry on one grid.

    Args:
        width: cells across; there are twice as many along the stream, and they are square.
        obstacles: the bodies in the stream; the published cylinder but for `Forces`.

    Raises:
        ConfigurationError: `width` is no whole number of at least 8.
    """

    width: int = 32
    obstacles: tuple[Cylinder | Box, ...] = (CYLINDER,)

    def __post_init__(self) -> None:
        """Refuse a grid that cannot hold the cylinder."""
        whole = isinstance(self.width, int) and not isinstance(self.width, bool)
        if not whole or self.width < SMALLEST_WIDTH:
            raise ConfigurationError(
                f"Channel, width: expected a whole number of at least {SMALLEST_WIDTH} cells, "
                f"got {self.width!r}. On fewer the grid does not see the cylinder."
            )

    @property
    def height(self) -> int:
        """Cells along the stream."""
        return 2 * self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one velocity array: `(2, height, width)`."""
        return 2, self.height, self.width

    @property
    def cell(self) -> float:
        """Side of a cell, in units of length (the diameter is 20)."""
        return LENGTHS[0] / self.width

    def smallest_reynolds(self, dt: float) -> float:
        """Below it explicit diffusion with time step `dt` is unstable: nu dt / cell^2 > 1/4."""
        return viscosity(1.0) * dt / (self.cell**2 / 4)

    @cached_property
    def boundary(self) -> Extrapolation:
        """Of the velocity: side walls at the stream's speed, inflow below, zero gradient above."""
        stream = vec(x=0.0, y=SPEED)
        return as_extrapolation({"x": stream, "y-": stream, "y+": BOUNDARY})

    @cached_property
    def pressure_boundary(self) -> Extrapolation:
        """Zero gradient where the velocity is given, zero beyond the outlet."""
        return combine_sides(x=BOUNDARY, y=(BOUNDARY, ZERO))

    @cached_property
    def box(self) -> PhiBox:
        """The domain, in units of length."""
        box: Any = PhiBox  # its metaclass takes the axes' names
        return box(x=LENGTHS[0], y=LENGTHS[1])

    @cached_property
    def geometries(self) -> list[Geometry]:
        """PhiFlow's geometry of each obstacle, as `make_incompressible` takes them."""
        return [obstacle.geometry for obstacle in self.obstacles]

    def velocity_grid(self, values: Any = 0) -> Field:
        """PhiFlow's staggered grid; `values` as `StaggeredGrid` takes them."""
        return StaggeredGrid(values, self.boundary, self.box, x=self.width, y=self.height)

    def pressure_grid(self, values: Any = 0) -> Field:
        """PhiFlow's centred grid for the pressure."""
        return CenteredGrid(values, self.pressure_boundary, self.box, x=self.width, y=self.height)

    @cached_property
    def masks(self) -> Masks:
        """The obstacles as PhiFlow's `make_incompressible` sees them, made once."""
        return Masks.of(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made on demand."""
        return {"width": self.width, "obstacles": self.obstacles}


@dataclass(frozen=True)
class Masks:
    """The obstacles on the grid, float64.

    Attributes:
        fractions: `(2, height, width)`, share of each face's velocity that is outside (soft edge);
            0 on the wall's column.
        passable: `(2, height, width)`, 1 on faces that fluid passes, else 0; 0 on the wall's column.
        active: `(height, width)`, 1 in cells that hold fluid, 0 inside the obstacles.
        fields: PhiFlow's own (passable, active), for its masked Laplace operator.
    """

    fractions: np.ndarray
    passable: np.ndarray
    active: np.ndarray
    fields: tuple[Field, Field]

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, channel: Channel) -> Masks:
        """Make them from PhiFlow, with the steps of `phi.physics.fluid.make_incompressible`.

        They are made once in a process for equal channels.
        """
        with ALONE, NUMPY, math.precision(64):
            velocity = channel.velocity_grid()
            fractions = 1 - velocity * 0
            outside: Any = math.ones(spatial(x=channel.width, y=channel.height))
            if channel.obstacles:
                outside = ~union(channel.geometries)
            for geometry in channel.geometries:
                fractions *= 1 - resample(geometry, velocity, soft=True, balance=1)
            # Beyond walls and inflow no fluid is reached, beyond the outlet it is.
            accessible = Field(velocity.geometry, outside, combine_sides(x=ZERO, y=(ZERO, ONE)))
            passable = field.stagger(
                accessible, math.minimum, velocity.boundary, at=velocity.sampled_at, dims=["x", "y"]
            )
            active = accessible.with_extrapolation(NONE)
            cells = np.array(active.values.numpy("y,x"), np.float64)
            return cls(faces_to_array(fractions), faces_to_array(passable), cells, (passable, active))


def viscosity(reynolds: Any) -> Any:
    """Kinematic viscosity (length^2 / time) from Re_D = U D / nu; numbers, arrays or tensors."""
    return SPEED * 2 * RADIUS / reynolds


def faces_to_array(velocity: Field) -> np.ndarray:
    """One staggered field of PhiFlow's as `(2, height, width)`: left faces of x, upper faces of y.

    The first column of x is the wall's, where nothing passes: 0.
    """
    components: Any = velocity  # PhiFlow makes attributes of dimensions at run time
    x, y = (np.array(components.vector[d].values.numpy("y,x"), np.float64) for d in "xy")
    return np.stack([np.pad(x, ((0, 0), (1, 0))), y])
