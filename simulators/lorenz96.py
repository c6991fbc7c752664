"""`Lorenz96`: chaos on a ring of sites."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number, check_positive
from simulators.state_system import StateSystem, runge_kutta

SPIN_UP = 20.0  # time units; a small perturbation doubles in some 0.4


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


def _carried(x: Tensor) -> Tensor:
    """`(x_{k+1} - x_{k-2}) x_{k-1}` around the last axis."""
    sites = x.shape[-1]
    ring = torch.cat([x[..., -2:], x, x[..., :1]], -1)  # views into one copy: faster than three rolls
    return (ring[..., 3:] - ring[..., :sites]) * ring[..., 1 : sites + 1]
