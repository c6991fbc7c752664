"""`CoupledMapLattice`: chaotic maps on a ring, each mixed with its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.simulator import count, number
from simulators.state_system import StateSystem


@dataclass(kw_only=True, eq=False, repr=False)
class CoupledMapLattice(StateSystem):
    """`x_k' = (1 - c) f(x_k) + c / 2 (f(x_{k-1}) + f(x_{k+1}))`, f(x) = 1 - a x^2, on a ring (Kaneko 1984).

    The state is `(1, sites)`. Values from -1 to 1 stay there, larger ones may grow without bound. One site
    alone (c = 0) at a = 2 has the Lyapunov exponent ln 2. Source: Kaneko (1984, Prog. Theor. Phys. 72).

    Args:
        sites: around the ring, at least 3.
        nonlinearity: a, from 0 to 2; at the default all sites are in "fully developed turbulence".
        coupling: c, from 0 (none) to 1.
        steps: applications of the map per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 200.0  # in steps of 1

    sites: int = count(40, least=3)
    # Above 2 the map leaves the range from -1 to 1 and grows without bound.
    nonlinearity: float = number(1.9, least=0, most=2)
    coupling: float = number(0.3, least=0, most=1)

    def _prepare(self) -> None:
        """One channel on the ring."""
        self.shape = (1, self.sites)

    def _step(self, state: Tensor) -> Tensor:
        mapped = 1 - self.nonlinearity * state.square()
        ring = torch.cat([mapped[..., -1:], mapped, mapped[..., :1]], -1)
        return (1 - self.coupling) * mapped + self.coupling / 2 * (ring[..., :-2] + ring[..., 2:])

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(rows, *self.shape, generator=generator, dtype=torch.float64) - 1
