"""`VanDerPol` and `DoublePendulum`: small vector states, one stiff, one chaotic and with a wall if asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox.checks import check_number
from simulators.simulator import number
from simulators.state_system import StateSystem, runge_kutta

NEWTON = 30  # steps at most; 3 to 6 are usual
TOLERANCE = 1e-11  # of a Newton step, relative to 1 + |v|


@dataclass(kw_only=True, eq=False, repr=False)
class VanDerPol(StateSystem):
    """`x' = v`, `v' = stiffness (1 - x^2) v - x` (van der Pol 1926), in implicit Euler steps.

    The state is `(2,)`: x and v. Where the stiffness is large, v falls within `1 / stiffness` to where x
    allows it: a call forgets the v that it was given, x creeps for most of the time and then jumps.

    A step solves `v1 = v + dt (stiffness (1 - x1^2) v1 - x1)`, `x1 = x + dt v1`, a cubic in v1, by Newton's
    method in float64, first order in `dt`; a row that does not get there becomes NaN. Its derivative is that
    of the solution, by one more Newton step. Above `dt * stiffness = 1` the cubic may have several
    solutions, so that is refused.

    Args:
        stiffness: above 0.
        dt: time step, at most `1 / stiffness`.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 1.0  # after which v follows x

    stiffness: float = number(20.0, above=0)
    dt: float = number(0.02, above=0)

    def _prepare(self) -> None:
        """Refuse a step in which the cubic may have several solutions."""
        check_number(type(self).__name__, "dt", self.dt, most=1 / self.stiffness)
        self.shape = (2,)

    def tendency(self, state: Tensor) -> Tensor:
        """Time derivative `(..., 2)`."""
        x, v = state.unbind(-1)
        return torch.stack([v, self.stiffness * (1 - x.square()) * v - x], -1)

    def _step(self, state: Tensor) -> Tensor:
        x, v = state.double().unbind(-1)
        with torch.no_grad():
            v_next, lost = v.clone(), torch.ones_like(v, dtype=torch.bool)
            for _ in range(NEWTON):
                residual, slope = self._residual(v_next, x, v)
                change = residual / slope
                v_next = v_next - change
                lost = ~(change.abs() <= TOLERANCE * (1 + v_next.abs()))
                if not lost.any():
                    break
            v_next = torch.where(lost, torch.nan, v_next)
            _, slope = self._residual(v_next, x, v)
        # Here the residual is 0 to rounding; its derivative with respect to x and v is what is wanted.
        v_next = v_next - self._residual(v_next, x, v)[0] / slope
        return torch.stack([x + self.dt * v_next, v_next], -1).to(state.dtype)

    def _residual(self, v_next: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of the equation for v1, and its derivative with respect to v1."""
        after = x + self.dt * v_next
        rate = self.stiffness * (1 - after.square())
        residual = v_next - v - self.dt * (rate * v_next - after)
        slope = 1 - self.dt * (rate - 2 * self.stiffness * self.dt * after * v_next - self.dt)
        return residual, slope

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Anywhere around the limit cycle, which x crosses from -2 to 2."""
        draw = 2 * torch.rand(rows, 2, generator=generator, dtype=torch.float64) - 1
        return torch.tensor([2.0, 1.0], dtype=torch.float64) * draw


@dataclass(kw_only=True, eq=False, repr=False)
class DoublePendulum(StateSystem):
    """Two masses of 1 on massless rods of length 1, one below the other: chaos in four numbers.

    The state is `(4,)`: both angles from the vertical, then both angular velocities. Classical Runge-Kutta.
    Without friction the energy is conserved to fourth order in `dt`. With a `wall` the upper rod bounces:
    at a step's end an angle beyond the wall is mirrored into the room, and an outward velocity turned back
    and reduced by `restitution`. The response to a change is then another one on each side of an impact.

    Args:
        gravity: over the rods' length.
        friction: torque on each rod against its own angular velocity, over that velocity; 0 or more.
        wall: largest angle of the upper rod, or None.
        restitution: share of the velocity that an impact leaves, from 0 to 1.
        dt: time step; .02 is fine.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 0.0  # all states are possible

    gravity: float = number(9.81)
    friction: float = number(0.0, least=0)
    wall: float | None = None
    restitution: float = number(0.8, least=0, most=1)
    dt: float = number(0.02, above=0)

    def _prepare(self) -> None:
        """Check the wall, if there is one."""
        if self.wall is not None:
            self.wall = check_number(type(self).__name__, "wall", self.wall)
        self.shape = (4,)

    def energy(self, state: Tensor) -> Tensor:
        """Kinetic and potential, `(...)`; 0 of the latter at the height of the joint above."""
        one, two, p, q = state.unbind(-1)
        kinetic = p.square() + q.square() / 2 + p * q * torch.cos(one - two)
        return kinetic - self.gravity * (2 * torch.cos(one) + torch.cos(two))

    def tendency(self, state: Tensor) -> Tensor:
        """Time derivative `(..., 4)`."""
        one, two, p, q = state.unbind(-1)
        sine, cosine = torch.sin(one - two), torch.cos(one - two)
        # Lagrange: 2 p' + cosine q' = upper, cosine p' + q' = lower
        upper = -sine * q.square() - 2 * self.gravity * torch.sin(one) - self.friction * p
        lower = sine * p.square() - self.gravity * torch.sin(two) - self.friction * q
        determinant = 2 - cosine.square()
        return torch.stack(
            [p, q, (upper - cosine * lower) / determinant, (2 * lower - cosine * upper) / determinant], -1
        )

    def _step(self, state: Tensor) -> Tensor:
        state = runge_kutta(self.tendency, state, self.dt)
        if self.wall is None:
            return state
        one, two, p, q = state.unbind(-1)
        beyond = one > self.wall
        one = torch.where(beyond, 2 * self.wall - one, one)
        p = torch.where(beyond & (p > 0), -self.restitution * p, p)
        return torch.stack([one, two, p, q], -1)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Angles up to 1 (below the wall if that is less) and velocities up to 1."""
        draw = 2 * torch.rand(rows, 4, generator=generator, dtype=torch.float64) - 1
        if self.wall is not None:
            draw[:, 0].clamp_(max=self.wall)
        return draw
