"""`CoupledMapLattice`: chaotic maps on a ring, each mixed with its neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number
from simulators.state_system import StateSystem

SPIN_UP = 200  # steps


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

    def __init__(
        self,
        *,
        sites: int = 40,
        nonlinearity: float = 1.9,
        coupling: float = 0.3,
        steps: int = 1,
        max_rows: int = 4096,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings."""
        check_count("CoupledMapLattice", "sites", sites, least=3)
        # Above 2 the map leaves the range from -1 to 1 and grows without bound.
        check_number("CoupledMapLattice", "nonlinearity", nonlinearity, least=0, most=2)
        check_number("CoupledMapLattice", "coupling", coupling, least=0, most=1)
        self.sites, self.nonlinearity, self.coupling = sites, float(nonlinearity), float(coupling)
        settings = {"sites": sites, "nonlinearity": self.nonlinearity, "coupling": self.coupling}
        super().__init__((1, sites), settings, steps=steps, max_rows=max_rows, failures=failures)

    @property
    def spin_up(self) -> int:
        """200 steps."""
        return SPIN_UP

    def _step(self, state: Tensor) -> Tensor:
        mapped = 1 - self.nonlinearity * state.square()
        ring = torch.cat([mapped[..., -1:], mapped, mapped[..., :1]], -1)
        return (1 - self.coupling) * mapped + self.coupling / 2 * (ring[..., :-2] + ring[..., 2:])

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(rows, *self.shape, generator=generator, dtype=torch.float64) - 1
