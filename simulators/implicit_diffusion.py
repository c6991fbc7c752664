"""`ImplicitDiffusion`: non-linear diffusion in implicit steps, so long that every cell feels every other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from simulators.simulator import count, number
from simulators.state_system import StateSystem
from simulators.tridiagonal import solve_tridiagonal

TOLERANCE = 1e-11  # of the residual's norm, relative to that of the right-hand side
ROUNDING = 1e-15  # of the residual, relative to the terms that cancel in it: what float64 can reach
HALVINGS = 20  # of a Newton step that does not make the residual smaller


@dataclass(kw_only=True, eq=False, repr=False)
class ImplicitDiffusion(StateSystem):
    """`u' - dt (k(u') u'_x)_x = u + dt source`, k(u) = floor + |u|^power, between insulated walls.

    A power of 1 or 2 is flow through a porous medium, 3 or more heat by radiation: fronts that creep where u
    is small. The state is `(1, points)`, means over the cells of a domain of length 1. The source `heating *
    cos(pi x)` warms the left and cools the right, so the sum over the cells is conserved; without it no
    value leaves the range of the state before. States of one sum come to rest at one profile.

    Each step solves its equations in float64, whatever the state's dtype, by Newton's method, whose steps are
    halved where the residual does not fall, to 1e-11 of the right-hand side or to rounding (norms over the
    cells). A row that does not get there becomes NaN, so in a call it fails alone: seen where one step turns
    the state over (`dt * heating` far above it, a power of 3 or more), or at values of 1e10. `step` has
    first derivatives, by the implicit function theorem: one more linear solve.

    Args:
        points: cells across, at least 3.
        floor: conductivity at u = 0, above 0.
        power: of |u| in the conductivity, 1 or more.
        heating: amplitude of the source, in u over time.
        dt: time step; a cell's influence falls by a factor of e over a distance of `sqrt(dt k)`.
        iterations: Newton steps after which a row that has not converged is given up; 3 to 15 are usual.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    points: int = count(64, least=3)
    floor: float = number(0.05, above=0)
    power: float = number(2.0, least=1)
    heating: float = number(1.0)
    dt: float = number(0.1, above=0)
    iterations: int = count(50)
    max_rows: int = count(1024)

    def _prepare(self) -> None:
        """Lay out the source."""
        self.shape = (1, self.points)
        self.link = self.dt * self.points**2  # dt over the square of a cell's width
        centres = (torch.arange(self.points, dtype=torch.float64) + 0.5) / self.points
        neighbours = torch.full((self.points,), 2.0, dtype=torch.float64)
        neighbours[[0, -1]] = 1
        self._tables = (self.dt * self.heating * torch.cos(math.pi * centres), self.link * neighbours)

    @property
    def spin_up(self) -> int:
        """One step: later ones take away what makes the states differ."""
        return 1

    def conductivity(self, state: Tensor) -> Tensor:
        """k(u), `(..., 1, points)`."""
        return self.floor + state.abs() ** self.power

    def residual(self, after: Tensor, right: Tensor) -> Tensor:
        """What is left of the equations: `after - dt laplace(K(after)) - right`, K the integral of k."""
        flux = self.link * self._potential(after).diff(dim=-1)
        walled = F.pad(flux, (1, 1))
        return after - walled.diff(dim=-1) - right

    def _step(self, state: Tensor) -> Tensor:
        fine = state.double()
        heated = fine + self._tables_for(fine)[0]
        after: Any = _ImplicitFunction.apply(heated, self)
        return after.to(state.dtype)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Positive profiles around 1, of a mean and five cosines between the walls."""
        draw = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
        centres = (torch.arange(self.points, dtype=torch.float64) + 0.5) / self.points
        waves = torch.cos(math.pi * torch.arange(6, dtype=torch.float64)[:, None] * centres)
        return torch.exp(0.4 * (draw @ waves))[:, None]

    def solve(self, right: Tensor) -> Tensor:
        """The root of `residual` for `right` (..., 1, points) in float64, without a gradient.

        NaN in rows where Newton's method ends above the tolerance.
        """
        after, left = right, self.residual(right, right)
        size = _norm(left)
        going = size > self._limit(after, right)
        for _ in range(self.iterations):
            if not going.any():
                break
            newton = self._newton_step(after, left)
            share, better = torch.ones_like(size), torch.zeros_like(going)
            for _ in range(HALVINGS):
                tried = after - share * newton
                left_there = self.residual(tried, right)
                take = going & ~better & (_norm(left_there) < size)
                after, left = torch.where(take, tried, after), torch.where(take, left_there, left)
                better = better | take
                if (better | ~going).all():
                    break
                share = torch.where(better, share, share / 2)
            size = _norm(left)
            going = better & (size > self._limit(after, right))  # no better: stuck, or no number
        return torch.where(size <= self._limit(after, right), after, torch.nan)

    def pull_back(self, after: Tensor, cotangent: Tensor) -> Tensor:
        """Cotangent of the right-hand side: the transposed Jacobian's inverse times that of the root."""
        resistance = 1 / self.conductivity(after)
        return self._solve_symmetric(resistance, cotangent * resistance)

    def _newton_step(self, after: Tensor, left: Tensor) -> Tensor:
        resistance = 1 / self.conductivity(after)
        return self._solve_symmetric(resistance, left) * resistance

    def _solve_symmetric(self, resistance: Tensor, right: Tensor) -> Tensor:
        """Of `1/k - dt laplace`: the Jacobian `1 - dt laplace k` times 1/k, positive definite."""
        links = self._tables_for(right)[1]
        beside = right.new_full((*right.shape[:-1], self.points - 1), -self.link)
        return solve_tridiagonal(resistance + links, beside, right)

    def _potential(self, state: Tensor) -> Tensor:
        return state * (self.floor + state.abs() ** self.power / (self.power + 1))

    def _limit(self, after: Tensor, right: Tensor) -> Tensor:
        terms = 4 * self.link * _norm(self._potential(after))
        return TOLERANCE * _norm(right) + ROUNDING * terms


class _ImplicitFunction(torch.autograd.Function):
    """Root of a system's `residual`; first derivatives by the implicit function theorem."""

    @staticmethod
    def forward(right: Tensor, system: ImplicitDiffusion) -> Tensor:
        return system.solve(right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return ctx.system.pull_back(*ctx.saved_tensors, cotangent), None


def _norm(values: Tensor) -> Tensor:
    return values.norm(dim=-1, keepdim=True)
