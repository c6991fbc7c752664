"""Drag and lift from velocities alone, by the balance of momentum in a window around the obstacles.

Who has velocities and no more, of a fine solver on a coarse grid or of a solver that a network corrects,
cannot ask the solver for its pressure. But wherever no obstacle is, the momentum equation says what the
pressure's gradient is (density 1):

    R = -du/dt - div(u u) + nu laplace(u),      grad p = R.

So p is found outside of a window that holds all obstacles, as the one whose gradient is nearest to R in the
least squares, zero beyond the outlet. The force on what stands in the window is the momentum that flows in,
and neither leaves nor stays:

    F = integral over the window of R - integral over its edge of p n
      = -d/dt integral of u - surface integrals of (u (u.n) + p n - nu du/dn).

That is the impulse balance of particle image velocimetry (Unal, Lin & Rockwell 1997, J. Fluids Struct. 11;
Noca, Shiels & Jeon 1999, J. Fluids Struct. 13), with the pressure fitted instead of integrated along the
edge. R is taken in the form of fluxes between cells, so that its sum over the window is made of those
through the edge: what happens at the obstacles, where a grid knows least, is not looked at.

A network's corrections inside the window count as forces, as all does that changes momentum there and
is not in the equation above: so does a scheme's own diffusion. Two velocities are a time step apart; the
force is that between them, second order in time and cells.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from blackbox.checks import check_positive
from blackbox.errors import ConfigurationError
from simulators.wake_flow.geometry import CENTRE, RADIUS, SPEED, Box, Channel, viscosity
from simulators.wake_flow.pressure import PressureSolver
from simulators.wake_flow.staggered import laplace, padded

MARGIN = 2 * RADIUS  # from the centre to the usual window: half a diameter of it, for a coarse grid's edge
AROUND = (CENTRE[0] - MARGIN, CENTRE[1] - MARGIN), (CENTRE[0] + MARGIN, CENTRE[1] + MARGIN)
DYNAMIC = 0.5 * SPEED**2 * 2 * RADIUS  # of the stream on the diameter: forces over it are coefficients


class Forces:
    """Drag and lift coefficients, F / (U^2 D / 2) for each unit of the cylinder's length.

    Args:
        channel: the velocities' grid; the window holds its cylinder with a margin.
        dt: time between the two velocities of a call.
        window: lowest and highest coordinates `(across, along)` of another window; it grows to whole cells.

    Raises:
        ConfigurationError: the window reaches the domain's edge, or `dt` is not above zero.
    """

    def __init__(
        self,
        channel: Channel,
        dt: float,
        *,
        window: tuple[tuple[float, float], tuple[float, float]] | None = None,
    ) -> None:
        """Lay the window on the cells and factorise the pressure's operator around it."""
        self.dt, self.cell = check_positive("Forces", "dt", dt), channel.cell
        lower, upper = AROUND if window is None else window
        first = [math.floor(low / channel.cell + 1e-9) for low in lower]
        last = [math.ceil(high / channel.cell - 1e-9) for high in upper]
        (self.left, self.low), (self.right, self.high) = first, last  # cells, the last ones not included
        if not (
            1 <= self.left < self.right < channel.width and 1 <= self.low < self.high < channel.height - 1
        ):
            raise ConfigurationError(
                f"Forces, window: expected one that leaves a cell ({channel.cell:g}) free at the domain's "
                f"edge on all sides, got {lower} to {upper}. Take a smaller one, or a finer grid."
            )
        corners = [(x * channel.cell, y * channel.cell) for x, y in (first, last)]
        self._around = Channel(channel.width, (Box(*corners),))
        self._solve = PressureSolver(self._around)

    def __call__(self, before: Tensor, now: Tensor, reynolds: Tensor) -> tuple[Tensor, Tensor]:
        """Mean coefficients over the time from one velocity to the other.

        Args:
            before: `(rows, 2, height, width)`, in units of the inflow's speed, laid out as in `WakeStep`.
            now: likewise, `dt` later.
            reynolds: `(rows,)`, Re_D = U D / nu.

        Returns:
            Drag, positive along the stream, and lift, positive towards higher x: `(rows,)` each.
        """
        source = self.momentum(before, now, reynolds)
        pressure = self._pressure(source)
        cells = slice(self.left, self.right), slice(self.low, self.high)
        across, along = cells
        # Momentum cells reach from the centres of the cells before the window to those behind it.
        drag = source[:, 1, self.low - 1 : self.high, across].sum(dim=(1, 2)) * self.cell**2
        drag -= (pressure[:, self.high, across] - pressure[:, self.low - 1, across]).sum(1) * self.cell
        lift = source[:, 0, along, self.left : self.right + 1].sum(dim=(1, 2)) * self.cell**2
        lift -= (pressure[:, along, self.right] - pressure[:, along, self.left - 1]).sum(1) * self.cell
        return drag / DYNAMIC, lift / DYNAMIC

    def momentum(self, before: Tensor, now: Tensor, reynolds: Tensor) -> Tensor:
        """R on the faces, `(rows, 2, height, width)`; 0 on the wall's column."""
        middle = (before + now) / 2
        u, v = padded(middle)  # from the wall's face, and from beyond walls and inflow
        at_corners = (u[:, :-1] + u[:, 1:]) * (v[:, :-1, :-1] + v[:, :-1, 1:]) / 4
        u_centres, v_centres = (u[:, 1:-1, :-1] + u[:, 1:-1, 1:]) / 2, (v[:, :-1] + v[:, 1:])[:, :, 1:-1] / 2
        out_x = u_centres.square().diff(dim=2) + at_corners[:, :, 1:-1].diff(dim=1)
        out_y = v_centres.square().diff(dim=1) + at_corners[:, 1:].diff(dim=2)
        out = torch.stack([F.pad(out_x, (1, 0)), out_y], dim=1) / self.cell
        spread = torch.stack([F.pad(laplace(u), (1, 0)), laplace(v)], dim=1) / self.cell**2
        change = (now - before) / self.dt
        wall = torch.ones_like(change[:1])
        wall[:, 0, :, 0] = 0  # what stands in the wall's column means nothing
        return (viscosity(reynolds).to(middle).view(-1, 1, 1, 1) * spread - out - change) * wall

    def _pressure(self, source: Tensor) -> Tensor:
        """`(rows, height, width)`, of least squares outside the window; inside the values mean nothing."""
        masks = self._around.masks
        passable, active = (torch.from_numpy(m).to(source) for m in (masks.passable, masks.active))
        along_faces = source * passable
        outflow = F.pad(along_faces[:, 0], (0, 1)).diff(dim=2) + F.pad(along_faces[:, 1], (0, 0, 1, 0)).diff(
            dim=1
        )
        return self._solve(outflow / self.cell * active)
