"""One time step of the wake for many rows at once: PhiFlow's operators, recorded, around one solve.

The order is PhiFlow's: explicit diffusion, advection, then what `make_incompressible` does
(velocity out of the obstacle, divergence, pressure, minus its gradient). Diffusion, divergence and
gradient are PhiFlow's own code, recorded (see `recording`); advection is written out (see
`advection` for the reason) and pressure solved directly (see `pressure`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from blackbox.errors import ConfigurationError, DtypeError, ShapeError
from simulators.wake_flow.advection import ADVECTION
from simulators.wake_flow.geometry import ALONE, CYLINDER, SPEED, Channel, viscosity
from simulators.wake_flow.operators import BITS, Operators
from simulators.wake_flow.pressure import PressureSolver
from simulators.wake_flow.recording import ROWS, record

Advection = Literal["semi-lagrangian", "mac-cormack"]
LARGEST_COURANT = 10.0  # cells that the stream passes in a step


class Parts(NamedTuple):
    """What a step needs in one dtype on one device."""

    diffusion: Callable[[Tensor], Tensor]
    divergence: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    fractions: Tensor
    passable: Tensor
    active: Tensor


class WakeStep:
    """`step(velocity, reynolds) -> velocity` one `dt` later, differentiable by autograd.

    Velocity is `(rows, 2, height, width)` in units of the inflow's speed. Channel 0 is the x component
    on the *left* faces of the cells, so its first column is the wall's: it is not read, and comes
    back 0. Channel 1 is the y component (along the stream) on the *upper*, downstream faces.
    `reynolds` is `(rows,)`, Re_D = U D / nu. It runs in the dtype and on the device of `velocity`; what it
    needs there is made at the first call (a second or so), once in a process for steps on equal channels.

    Rows do not interact: NaN in one stays there, and batch mates change a row by rounding only.

    Args:
        channel: the geometry; a width stands for `Channel(width)`.
        dt: time step, in lengths over speed (a diameter passes in 20), in which the stream may pass
            10 cells at most. Both schemes stay finite with longer ones too, but resolve little of the flow.
        advection: "semi-lagrangian" (first order) or "mac-cormack" (second).

    Raises:
        ConfigurationError: `dt` is not above zero or too long, there is no such advection, or the
            obstacles shut fluid off from the outlet.
    """

    def __init__(
        self, channel: Channel | int, dt: float = 1.0, advection: Advection = "semi-lagrangian"
    ) -> None:
        """Keep the settings and factorise the pressure operator."""
        self.channel = channel if isinstance(channel, Channel) else Channel(channel)
        self.check(dt, advection, self.channel)
        self.dt, self.advection = float(dt), advection
        self.solve = PressureSolver(self.channel)
        self._parts: dict[tuple[torch.dtype, torch.device], Parts] = {}

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
        parts = self.parts(velocity.dtype, velocity.device)
        spread = (viscosity(reynolds) * self.dt).to(velocity).view(-1, 1, 1, 1)
        diffused = torch.addcmul(velocity, parts.diffusion(velocity), spread)
        moved = ADVECTION[self.advection](diffused, self.dt, self.channel.cell) * parts.fractions
        pressure = self.solve(parts.divergence(moved) * parts.active)
        return torch.addcmul(moved, parts.gradient(pressure), parts.passable, value=-1)

    @staticmethod
    def check(dt: float, advection: str, channel: Channel) -> None:
        """Refuse settings that no step on this channel can have (ConfigurationError)."""
        if not (isinstance(dt, int | float) and 0 < dt < float("inf")):
            raise ConfigurationError(f"WakeStep, dt: expected a time above 0, got {dt!r}. Take 1.0.")
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

    def parts(self, dtype: torch.dtype, device: torch.device) -> Parts:
        """The recorded operators and masks in `dtype` on `device`, made at the first call."""
        key = dtype, device
        if key not in self._parts:
            # Tensors made in inference mode could take part in no gradient later.
            with ALONE, torch.inference_mode(False), torch.no_grad():
                if key not in self._parts:  # another thread may have made them meanwhile
                    self._parts[key] = _make_parts(self.channel, *key)
        return self._parts[key]

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
        if velocity.dtype not in BITS:
            raise DtypeError(
                f"{self!r}, velocity: expected float32 or float64, got {str(velocity.dtype)[6:]}. "
                "Convert it with .float() or .double()."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone; recordings and factorisation are rebuilt."""
        return type(self), (self.channel, self.dt, self.advection)

    def __repr__(self) -> str:
        """The call that makes an equal step."""
        published = self.channel.obstacles == (CYLINDER,)
        channel = self.channel.width if published else self.channel
        return f"WakeStep({channel}, dt={self.dt:g}, advection={self.advection!r})"


@lru_cache(maxsize=32)
def _make_parts(channel: Channel, dtype: torch.dtype, device: torch.device) -> Parts:
    """Record the operators; nobody writes to the result, so that steps on equal channels share it."""
    operators, masks = Operators(channel, dtype), channel.masks
    faces = torch.ones(ROWS, *channel.shape, dtype=dtype)
    recorded = (
        record(operators.diffusion, faces),
        record(operators.divergence, faces),
        record(operators.gradient, faces[:, 0]),
    )
    # `forward`, not the module: a call in one thread must not meet a recording in another.
    diffusion, divergence, gradient = (operator.to(device).forward for operator in recorded)
    fractions, passable, active = (
        torch.from_numpy(table).to(device, dtype) for table in (masks.fractions, masks.passable, masks.active)
    )
    return Parts(diffusion, divergence, gradient, fractions, passable, active)
