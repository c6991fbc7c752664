"""`Lorenz96` and `TwoScaleLorenz96`: chaos on a ring of sites, without and with a resolved fast scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number, check_positive
from simulators.state_system import StateSystem

SPIN_UP = 20.0  # time units; a small perturbation doubles in some 0.4
TWO_SCALE_SPIN_UP = 5.0  # ten times the steps, and at the larger forcing everything goes faster


class Lorenz96(StateSystem):
    """`dX_k/dt = (X_{k+1} - X_{k-2}) X_{k-1} - X_k + F` on a ring (Lorenz 1996), by classical Runge-Kutta.

    The state is `(1, sites)`. The quadratic part conserves the energy, the sum of X^2 / 2. With 40 sites
    and a forcing of 8 the largest Lyapunov exponent is 1.67, a doubling in 0.42 (Lorenz & Emanuel 1998,
    J. Atmos. Sci. 55).

    Args:
        sites: around the ring, at least 4.
        forcing: F; chaotic from about 5 on.
        dt: time step; .05 is the usual one.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        sites: int = 40,
        forcing: float = 8.0,
        dt: float = 0.05,
        steps: int = 1,
        max_rows: int = 4096,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings."""
        check_count("Lorenz96", "sites", sites, least=4)
        check_number("Lorenz96", "forcing", forcing)
        check_positive("Lorenz96", "dt", dt)
        self.sites, self.forcing, self.dt = sites, float(forcing), float(dt)
        settings = {"sites": sites, "forcing": self.forcing, "dt": self.dt}
        super().__init__((1, sites), settings, steps=steps, max_rows=max_rows, failures=failures)

    @property
    def spin_up(self) -> int:
        """The steps of 20 time units."""
        return math.ceil(SPIN_UP / self.dt)

    def tendency(self, state: Tensor) -> Tensor:
        """dX/dt `(..., 1, sites)`."""
        return _carried(state) - state + self.forcing

    def _step(self, state: Tensor) -> Tensor:
        return runge_kutta(self.tendency, state, self.dt)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return self.forcing + torch.randn(rows, *self.shape, generator=generator, dtype=torch.float64)


class TwoScaleLorenz96(StateSystem):
    """Lorenz's system of two scales: each slow X_k drives, and is damped by, `fast` variables Y_jk.

        dX_k/dt = (X_{k+1} - X_{k-2}) X_{k-1} - X_k + F - (h c / b) sum_j Y_jk
        dY_jk/dt = c b (Y_{j-1,k} - Y_{j+2,k}) Y_{j+1,k} - c Y_jk + (h c / b) X_k

    with the Y of all sites in one ring, those of site k + 1 after those of site k (Lorenz 1996; the
    defaults are those of Wilks 2005, Q. J. R. Meteorol. Soc. 131). The state is `(1 + fast, sites)`:
    channel 0 is X, the others the Y of that site in their order. `slow(state)` reads off a state of
    `Lorenz96(sites=..., forcing=...)`, which lacks the sum over Y: its closure.

    Args:
        sites: slow variables, at least 4.
        fast: fast variables of each site.
        forcing: F.
        coupling: h.
        amplitude_ratio: b, of slow to fast variables.
        time_ratio: c, of slow to fast times.
        dt: time step, that of the slow variables.
        substeps: Runge-Kutta steps in each; .005 time units resolve the fast variables at c = 10.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        sites: int = 8,
        fast: int = 32,
        forcing: float = 20.0,
        coupling: float = 1.0,
        amplitude_ratio: float = 10.0,
        time_ratio: float = 10.0,
        dt: float = 0.05,
        substeps: int = 10,
        steps: int = 1,
        max_rows: int = 1024,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings."""
        for name, size, least in (("sites", sites, 4), ("fast", fast, 1), ("substeps", substeps, 1)):
            check_count("TwoScaleLorenz96", name, size, least)
        for name, value in (("forcing", forcing), ("coupling", coupling)):
            check_number("TwoScaleLorenz96", name, value)
        for name, value in (("amplitude_ratio", amplitude_ratio), ("time_ratio", time_ratio), ("dt", dt)):
            check_positive("TwoScaleLorenz96", name, value)
        self.sites, self.fast, self.substeps = sites, fast, substeps
        self.forcing, self.coupling, self.dt = float(forcing), float(coupling), float(dt)
        self.amplitude_ratio, self.time_ratio = float(amplitude_ratio), float(time_ratio)
        settings = {
            "sites": sites,
            "fast": fast,
            "forcing": self.forcing,
            "coupling": self.coupling,
            "amplitude_ratio": self.amplitude_ratio,
            "time_ratio": self.time_ratio,
            "dt": self.dt,
            "substeps": substeps,
        }
        super().__init__((1 + fast, sites), settings, steps=steps, max_rows=max_rows, failures=failures)

    @property
    def spin_up(self) -> int:
        """The steps of 5 time units."""
        return math.ceil(TWO_SCALE_SPIN_UP / self.dt)

    def slow(self, state: Tensor) -> Tensor:
        """The slow variables `(..., 1, sites)` of a state `(..., 1 + fast, sites)`."""
        return state[..., :1, :]

    def tendency(self, state: Tensor) -> Tensor:
        """Time derivative `(..., 1 + fast, sites)`."""
        x, y = state[..., :1, :], state[..., 1:, :]
        pull = self.coupling * self.time_ratio / self.amplitude_ratio
        slow = _carried(x) - x + self.forcing - pull * y.sum(-2, keepdim=True)
        ring = y.transpose(-1, -2).flatten(-2)  # by site, then by place within it
        carried = _carried_back(ring).unflatten(-1, (self.sites, self.fast)).transpose(-1, -2)
        fast = self.time_ratio * (self.amplitude_ratio * carried - y) + pull * x
        return torch.cat([slow, fast], -2)

    def _step(self, state: Tensor) -> Tensor:
        for _ in range(self.substeps):
            state = runge_kutta(self.tendency, state, self.dt / self.substeps)
        return state

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        state = torch.randn(rows, *self.shape, generator=generator, dtype=torch.float64)
        state[:, 1:] /= self.amplitude_ratio
        return state


def _carried(x: Tensor) -> Tensor:
    """`(x_{k+1} - x_{k-2}) x_{k-1}` around the last axis."""
    sites = x.shape[-1]
    ring = torch.cat([x[..., -2:], x, x[..., :1]], -1)  # views into one copy: faster than three rolls
    return (ring[..., 3:] - ring[..., :sites]) * ring[..., 1 : sites + 1]


def _carried_back(y: Tensor) -> Tensor:
    """`(y_{j-1} - y_{j+2}) y_{j+1}` around the last axis."""
    places = y.shape[-1]
    ring = torch.cat([y[..., -1:], y, y[..., :2]], -1)
    return (ring[..., :places] - ring[..., 3:]) * ring[..., 2 : places + 2]


def runge_kutta(tendency: Callable[[Tensor], Tensor], state: Tensor, dt: float) -> Tensor:
    """One step of the classical method of fourth order."""
    first = tendency(state)
    second = tendency(state + dt / 2 * first)
    third = tendency(state + dt / 2 * second)
    fourth = tendency(state + dt * third)
    return state + dt / 6 * (first + 2 * (second + third) + fourth)
