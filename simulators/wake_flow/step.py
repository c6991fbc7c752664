"""One time step of the wake for many rows at once: PhiFlow's, in plain torch, around one solve.

The order is PhiFlow's: explicit diffusion, advection, then what `make_incompressible` does
(velocity out of the obstacle, divergence, pressure, minus its gradient). Boundaries, masks and the
pressure's matrix are PhiFlow's own; its arithmetic is written out in `staggered` and `advection`, and
pressure solved directly (see `pressure`).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from blackbox.checks import check_positive
from blackbox.errors import ConfigurationError, DtypeError, ShapeError
from simulators.wake_flow.advection import ADVECTION
from simulators.wake_flow.geometry import CYLINDER, SPEED, Channel, viscosity
from simulators.wake_flow.pressure import PressureSolver
from simulators.wake_flow.staggered import diffusion, divergence, gradient

Advection = Literal["semi-lagrangian", "mac-cormack"]
LARGEST_COURANT = 10.0  # cells that the stream passes in a step


class WakeStep:
    """`step(velocity, reynolds) -> velocity` one `dt` later, differentiable by autograd.

    Velocity is `(rows, 2, height, width)` in units of the inflow's speed. Channel 0 is the x component
    on the *left* faces of the cells, so its first column is the wall's: it is not read, and comes
    back 0. Channel 1 is the y component (along the stream) on the *upper*, downstream faces.
    `reynolds` is `(rows,)`, Re_D = U D / nu. It runs in the dtype and on the device of `velocity`.

    Rows do not interact: NaN in one stays there, and batch mates change a row by rounding only.

    Args:
        channel: the geometry; a width stands for `Channel(width)`.
        dt: time step, in lengths over speed (a diameter passes in 20), in which the stream may pass
            10 cells at most. Both schemes stay finite with longer ones too, but resolve little of the flow.
        advection: "semi-lagrangian" (first order) or "mac-cormack" (second).

    Raises:
        ConfigurationError: `dt` is not above zero or too long, or there is no such advection.
    """

    def __init__(
        self, channel: Channel | int, dt: float = 1.0, advection: Advection = "semi-lagrangian"
    ) -> None:
        """Keep the settings and factorise the pressure operator."""
        self.channel = channel if isinstance(channel, Channel) else Channel(channel)
        self.check(dt, advection, self.channel)
        self.dt, self.advection = float(dt), advection
        self.solve = PressureSolver(self.channel)
        self._masks: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def __call__(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """One step.

        Args:
            velocity: `(rows, 2, height, width)`, float32 or float64.
            reynolds: `(rows,)`.

        Returns:
            `(rows, 2, height, width)`, free of divergence in every cell that holds fluid.

        Raises:
            ShapeError: the arrays have other shapes.
            DtypeError: the velocity is neither float32 nor float64.
        """
        self._check_arrays(velocity, reynolds)
        # A solver in bfloat16 is another solver: no autocast from around the call.
        with torch.autocast(velocity.device.type, enabled=False):
            return self._advance(velocity, reynolds)

    def _advance(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        cell = self.channel.cell
        fractions, passable, active = self.masks(velocity.dtype, velocity.device)
        spread = (viscosity(reynolds) * self.dt).to(velocity).view(-1, 1, 1, 1)
        diffused = torch.addcmul(velocity, diffusion(velocity, cell), spread)
        moved = ADVECTION[self.advection](diffused, self.dt, cell) * fractions
        pressure = self.solve(divergence(moved, cell) * active)
        return torch.addcmul(moved, gradient(pressure, cell), passable, value=-1)

    @staticmethod
    def check(dt: float, advection: str, channel: Channel) -> None:
        """Refuse settings that no step on this channel can have (ConfigurationError)."""
        check_positive("WakeStep", "dt", dt)
        courant = SPEED * dt / channel.cell
        if courant > LARGEST_COURANT:
            raise ConfigurationError(
                f"WakeStep, dt: expected a CFL number (speed dt / cell) of {LARGEST_COURANT:g} at most, got "
                f"{courant:.3g} with dt {dt:g} on cells of {channel.cell:g}. Take a dt of "
                f"{LARGEST_COURANT * channel.cell / SPEED:g} or less; about 0.3 to 1 cells a step are usual."
            )
        if advection not in get_args(Advection):
            raise ConfigurationError(
                f"WakeStep, advection: expected one of {', '.join(get_args(Advection))}, got {advection!r}."
            )

    def masks(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """The channel's fractions, passable faces and active cells (see `Masks`) in `dtype` on `device`."""
        key = dtype, device
        if key not in self._masks:
            tables = (getattr(self.channel.masks, name) for name in ("fractions", "passable", "active"))
            with torch.inference_mode(False):  # else no later gradient could go through
                self._masks[key] = tuple(torch.from_numpy(table).to(device, dtype) for table in tables)
        return self._masks[key]

    def _check_arrays(self, velocity: Tensor, reynolds: Tensor) -> None:
        if velocity.ndim != 4 or tuple(velocity.shape[1:]) != self.channel.shape:
            raise ShapeError(
                f"{self!r}, velocity: expected (rows, {', '.join(map(str, self.channel.shape))}), "
                f"got {tuple(velocity.shape)}. Rows come first, then x and y component."
            )
        if tuple(reynolds.shape) != (len(velocity),):
            raise ShapeError(
                f"{self!r}, reynolds: expected ({len(velocity)},), one per row of the velocity, "
                f"got {tuple(reynolds.shape)}."
            )
        if velocity.dtype not in (torch.float32, torch.float64):
            raise DtypeError(
                f"{self!r}, velocity: expected float32 or float64, got {str(velocity.dtype)[6:]}. "
                "Convert it with .float() or .double()."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone; the factorisation is rebuilt."""
        return type(self), (self.channel, self.dt, self.advection)

    def __repr__(self) -> str:
        """The call that makes an equal step."""
        published = self.channel.obstacles == (CYLINDER,)
        channel = self.channel.width if published else self.channel
        return f"WakeStep({channel}, dt={self.dt:g}, advection={self.advection!r})"
