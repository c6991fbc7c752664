"""`AdvectionDiffusionReaction`: two species on a torus that form shocks, diffuse and turn into each other."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from simulators.simulator import count, number
from simulators.state_system import StateSystem

DIRECTIONS = ((1.0, 0.5), (-0.5, 1.0))  # of each species' flux along (x, y), at right angles
LARGEST = 1.5  # |u| up to which a step is stable; the reaction draws every cell to |u| = 1
# Of all that leaves a cell in one stage. Harten's condition for no new extrema: the limiter can double a
# difference, and at a shock what comes from both sides counts 1.25 times, so 1 / 2.5.
COURANT = 0.4


@dataclass(eq=False, repr=False)
class AdvectionDiffusionReaction(StateSystem):
    """`du_i/dt + div(a_i u_i^2 / 2) = nu laplace(u_i) + r R_i(u)`, periodic, on square cells of side 1.

    The state is `(2, height, width)`: two species, each carried along its own direction a_i with its own
    value as speed (Burgers), so that fronts steepen to shocks. The reaction is
    `R = (1 - |u|^2) u + turn * (-u_2, u_1)` at the rate r: it draws every cell to |u| = 1, which keeps the
    state bounded, and turns it, so that shocks form, move and turn back. After a hundred time units or more
    diffusion has brought the cells into step, and the shocks die out.

    Finite volumes: van Leer's limiter, the Engquist-Osher flux, central differences for diffusion, and
    Heun's method in as many substeps as stability asks for up to |u| = 1.5. Without reaction the sum over the
    cells is conserved and no value leaves the range of the state before. Second order where it is
    smooth, first at extrema.

    Args:
        height: cells along y, at least 4.
        width: cells along x, at least 4.
        diffusion: nu, 0 or more, in cells^2 over time.
        reaction: r, 0 or more.
        turn: angle per time at |u| = 1, in radians over `1 / reaction`.
        dt: time step.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 12.0  # shocks have formed after some 5

    height: int = count(24, least=4)
    width: int = count(24, least=4)
    _: KW_ONLY
    diffusion: float = number(0.1, least=0)
    reaction: float = number(0.5, least=0)
    turn: float = number(1.0)
    dt: float = number(0.25, above=0)
    max_rows: int = count(64)

    def _prepare(self) -> None:
        """Count the substeps."""
        self.shape = (2, self.height, self.width)
        leaving = LARGEST * max(abs(x) + abs(y) for x, y in DIRECTIONS) + 4 * self.diffusion
        leaving += self.reaction * (LARGEST**2 + abs(self.turn))
        self.substeps = math.ceil(self.dt * leaving / COURANT)
        directions = torch.tensor(DIRECTIONS, dtype=torch.float64)
        self._tables = tuple(directions.T.reshape(2, 2, 1, 1))

    def tendency(self, state: Tensor) -> Tensor:
        """Time derivative `(..., 2, height, width)`."""
        across, along = self._tables_for(state)
        change = self._carried(state, across, -1) + self._carried(state, along, -2)
        if self.reaction:
            u, v = state[..., :1, :, :], state[..., 1:, :, :]
            turned = torch.cat([-v, u], -3)
            calm = 1 - (u.square() + v.square())
            change = change + self.reaction * (calm * state + self.turn * turned)
        return change

    def _carried(self, u: Tensor, direction: Tensor, axis: int) -> Tensor:
        """What flux and diffusion through the faces along `axis` add to each cell in unit time."""
        cells = u.shape[axis]
        v = u * direction  # for it the flux is v^2 / 2, whatever the direction's sign
        ring = torch.cat([v.narrow(axis, cells - 2, 2), v, v.narrow(axis, 0, 2)], axis)
        rise = ring.diff(dim=axis)
        flux = _burgers_flux(ring, rise, axis) - self.diffusion * rise.narrow(axis, 1, cells + 1)
        return flux.diff(dim=axis) / -direction

    def _step(self, state: Tensor) -> Tensor:
        dt = self.dt / self.substeps
        for _ in range(self.substeps):
            ahead = state + dt * self.tendency(state)
            state = 0.5 * (state + ahead + dt * self.tendency(ahead))
        return state

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Waves of up to three periods across, of root mean square 1."""
        _, height, width = self.shape
        noise = torch.randn(rows, *self.shape, generator=generator, dtype=torch.float64)
        periods = (torch.fft.fftfreq(height) * height)[:, None], (torch.fft.rfftfreq(width) * width)[None]
        long = (periods[0].square() + periods[1].square()) < 3.5**2
        waves = torch.fft.irfft2(torch.fft.rfft2(noise) * long, (height, width))
        waves = waves / waves.square().mean((1, 2, 3), keepdim=True).sqrt() / 2**0.5
        # The tails could start above what a step is stable for.
        return LARGEST * torch.tanh(waves / LARGEST)


def _burgers_flux(ring: Tensor, rise: Tensor, axis: int) -> Tensor:
    """Flux of v^2 / 2 through cells + 1 faces, from cells + 4 values and the cells + 3 rises between them.

    Both sides of a face are extrapolated with van Leer's limited slopes. Engquist & Osher (1981, Math. Comp.
    36): what moves forward is taken from behind the face, what moves back from beyond it, and the flux has a
    continuous derivative.
    """
    inner = ring.shape[axis] - 2
    before, after = rise.narrow(axis, 0, inner), rise.narrow(axis, 1, inner)
    product = (before * after).clamp_min(0)  # 0 at extrema
    # Half of the harmonic mean; where the product is 0 the sum may be, too.
    slope = product / torch.where(product > 0, before + after, 1)
    v = ring.narrow(axis, 1, inner)
    behind = (v + slope).narrow(axis, 0, inner - 1).clamp_min(0)
    beyond = (v - slope).narrow(axis, 1, inner - 1).clamp_max(0)
    return 0.5 * (behind.square() + beyond.square())
