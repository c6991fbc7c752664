"""Two species that react where they are and diffuse to their neighbours: three classics, periodic, in 2-D."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from simulators.simulator import count, number
from simulators.state_system import StateSystem, runge_kutta

STABLE = 2.5  # of damping in a step: classical Runge-Kutta ends at 2.78


@dataclass(eq=False, repr=False)
class ReactionDiffusion(StateSystem, abstract=True):
    """`u_t = D_u laplace(u) + f(u, v)`, `v_t = D_v laplace(v) + g(u, v)` on a torus, cells of side 1.

    The state is `(2, height, width)`. Second differences for diffusion, classical Runge-Kutta in as many
    substeps as stability asks for. A subclass gives `fastest`, `reaction`, `_draw`, and its rates as fields.

    Args:
        height: cells along y, at least 4.
        width: cells along x, at least 4.
        diffusion_u: of the first species, in cells^2 over time.
        diffusion_v: of the second.
        dt: time step.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Attributes:
        fastest: rate at which the reaction damps, on the states that occur.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    fastest: float = field(init=False)

    height: int = count(16, least=4)
    width: int = count(16, least=4)
    _: KW_ONLY
    diffusion_u: float = number(0.0, least=0)
    diffusion_v: float = number(0.0, least=0)
    dt: float = number(0.1, above=0)
    max_rows: int = count(256)

    def _prepare(self) -> None:
        """Count the substeps."""
        self.shape = (2, self.height, self.width)
        damping = 8 * max(self.diffusion_u, self.diffusion_v) + self.fastest
        self.substeps = math.ceil(self.dt * damping / STABLE)

    @abstractmethod
    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both rates of change, each of the shape of u."""

    def tendency(self, state: Tensor) -> Tensor:
        """Time derivative `(..., 2, height, width)`."""
        u, v = state.unbind(-3)
        f, g = self.reaction(u, v)
        return torch.stack([self.diffusion_u * laplacian(u) + f, self.diffusion_v * laplacian(v) + g], -3)

    def _step(self, state: Tensor) -> Tensor:
        for _ in range(self.substeps):
            state = runge_kutta(self.tendency, state, self.dt / self.substeps)
        return state


@dataclass(kw_only=True, eq=False, repr=False)
class Brusselator(ReactionDiffusion):
    """`f = a - (b + 1) u + u^2 v`, `g = b u - u^2 v` (Prigogine & Lefever 1968): chemical oscillations.

    The rest state (a, b / a) is unstable from `b > 1 + a^2` on, into oscillations whose phase waves carry.
    In them v rises to some `(b + 1)^2 / 4 a`, where `f` has no root left, and turns into u at once.
    """

    fastest = 12.0

    spin_up_time = 10.0

    diffusion_u: float = number(0.2, least=0)
    diffusion_v: float = number(0.02, least=0)
    a: float = number(1.0, above=0)
    b: float = number(3.0)
    dt: float = number(0.1, above=0)

    def _prepare(self) -> None:
        """At a pulse's peak, where the reaction damps by `u^2`, a substep may take all of the limit."""
        peak = max(self.a, (self.b + 1) ** 2 / (4 * self.a))
        self.fastest = max(self.fastest, STABLE / 2.78 * peak**2)
        super()._prepare()

    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of both species."""
        made = u.square() * v
        return self.a - (self.b + 1) * u + made, self.b * u - made

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Long waves around the rest state."""
        rest = torch.tensor([self.a, self.b / self.a], dtype=torch.float64)
        return rest[:, None, None] + 0.5 * waves(rows, self.shape, generator)


@dataclass(kw_only=True, eq=False, repr=False)
class GrayScott(ReactionDiffusion):
    """`f = -u v^2 + feed (1 - u)`, `g = u v^2 - (feed + kill) v`: spots that divide.

    Pearson (1993, Science 261). The rest state (1, 0) is stable, and what is not fed dies out: of the states
    that `start` gives some 5 % have come to rest on 16 x 16 cells, most on 8 x 8, none on 24 x 24.
    """

    fastest = 1.0

    spin_up_time = 200.0

    diffusion_u: float = number(0.16, least=0)
    diffusion_v: float = number(0.08, least=0)
    feed: float = number(0.04)
    kill: float = number(0.06)
    dt: float = number(2.0, above=0)

    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of both species."""
        made = u * v.square()
        return self.feed * (1 - u) - made, made - (self.feed + self.kill) * v

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Patches with half of the food gone, where a long wave is high."""
        high = torch.sigmoid(8 * (waves(rows, self.shape, generator)[:, 0] - 0.5))
        return torch.stack([1 - 0.5 * high, 0.25 * high], 1)


@dataclass(kw_only=True, eq=False, repr=False)
class FitzHughNagumo(ReactionDiffusion):
    """`f = u - u^3 - v + current`, `g = rate (u - gamma v)`: nerve and heart, pulses and spirals.

    FitzHugh (1961, Biophys. J. 1); u is quick, v slow by the factor `rate`.
    """

    fastest = 12.0

    spin_up_time = 10.0

    diffusion_u: float = number(0.5, least=0)
    diffusion_v: float = number(0.0, least=0)
    current: float = number(0.0)
    rate: float = number(0.1)
    gamma: float = number(0.5)
    dt: float = number(0.25, above=0)

    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of both species."""
        return u - u**3 - v + self.current, self.rate * (u - self.gamma * v)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Long waves in both species."""
        return 0.7 * waves(rows, self.shape, generator)


def laplacian(u: Tensor) -> Tensor:
    """Sum of the four neighbours less four times the cell, around both last axes."""
    return u.roll(1, -1) + u.roll(-1, -1) + u.roll(1, -2) + u.roll(-1, -2) - 4 * u


def waves(rows: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Waves of up to two periods across, of root mean square 1: `(rows, *shape)` in float64."""
    noise = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    height, width = shape[-2:]
    along = torch.fft.rfftfreq(width, dtype=torch.float64)[None] * width
    across = torch.fft.fftfreq(height, dtype=torch.float64)[:, None] * height
    long = torch.fft.irfft2(torch.fft.rfft2(noise) * (along**2 + across**2 < 2.5**2), (height, width))
    return long / long.square().mean((-2, -1), keepdim=True).sqrt()
