"""`Lorenz96`: chaos on a ring of sites."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.simulator import count, number
from simulators.state_system import StateSystem, runge_kutta


@dataclass(kw_only=True, eq=False, repr=False)
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

    spin_up_time = 20.0  # a small perturbation doubles in some 0.4

    sites: int = count(40, least=4)
    forcing: float = number(8.0)
    dt: float = number(0.05, above=0)

    def _prepare(self) -> None:
        """One channel on the ring."""
        self.shape = (1, self.sites)

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
