"""Two species that react where they are and diffuse to their neighbours: three classics, periodic, in 2-D."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number, check_positive
from simulators.state_system import StateSystem, runge_kutta

STABLE = 2.5  # of damping in a step: classical Runge-Kutta ends at 2.78


class ReactionDiffusion(StateSystem, abstract=True):
    """`u_t = D_u laplace(u) + f(u, v)`, `v_t = D_v laplace(v) + g(u, v)` on a torus, cells of side 1.

    The state is `(2, height, width)`. Second differences for diffusion, classical Runge-Kutta in as many
    substeps as stability asks for. A subclass gives `fastest`, `reaction` and `_draw`.

    Args:
        height: cells along y, at least 4.
        width: cells along x, at least 4.
        diffusions: of both species, in cells^2 over time.
        rates: the subclass's own constants, by name.
        dt: time step.
        spin_up_time: the time that `start` takes from a random state.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Attributes:
        fastest: rate at which the reaction damps, on the states that occur.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    fastest: float

    def __init__(
        self,
        height: int,
        width: int,
        diffusions: tuple[float, float],
        rates: dict[str, float],
        *,
        dt: float,
        spin_up_time: float,
        steps: int,
        max_rows: int,
        failures: Any,  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings and count the substeps."""
        name = type(self).__name__
        for side, cells in (("height", height), ("width", width)):
            check_count(name, side, cells, least=4)
        for species, diffusion in zip(("diffusion_u", "diffusion_v"), diffusions, strict=True):
            check_number(name, species, diffusion, least=0)
        for rate, value in rates.items():
            check_number(name, rate, value)
        check_positive(name, "dt", dt)
        self.dt = float(dt)
        self.rates = {rate: float(value) for rate, value in rates.items()}
        self.substeps = math.ceil(self.dt * (8 * max(diffusions) + self.fastest) / STABLE)
        self.diffusion_u, self.diffusion_v = (float(diffusion) for diffusion in diffusions)
        self._spin_up = math.ceil(spin_up_time / self.dt)
        settings = {
            "height": height,
            "width": width,
            "diffusion_u": self.diffusion_u,
            "diffusion_v": self.diffusion_v,
            **self.rates,
            "dt": self.dt,
        }
        super().__init__((2, height, width), settings, steps=steps, max_rows=max_rows, failures=failures)

    @abstractmethod
    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both rates of change, each of the shape of u."""

    @property
    def spin_up(self) -> int:
        """The steps in which patterns form."""
        return self._spin_up

    def tendency(self, state: Tensor) -> Tensor:
        """Time derivative `(..., 2, height, width)`."""
        u, v = state.unbind(-3)
        f, g = self.reaction(u, v)
        return torch.stack([self.diffusion_u * laplacian(u) + f, self.diffusion_v * laplacian(v) + g], -3)

    def _step(self, state: Tensor) -> Tensor:
        for _ in range(self.substeps):
            state = runge_kutta(self.tendency, state, self.dt / self.substeps)
        return state


class Brusselator(ReactionDiffusion):
    """`f = a - (b + 1) u + u^2 v`, `g = b u - u^2 v` (Prigogine & Lefever 1968): chemical oscillations.

    The rest state (a, b / a) is unstable from `b > 1 + a^2` on, into oscillations whose phase waves carry.
    """

    fastest = 12.0

    def __init__(
        self,
        height: int = 16,
        width: int = 16,
        *,
        diffusion_u: float = 0.2,
        diffusion_v: float = 0.02,
        a: float = 1.0,
        b: float = 3.0,
        dt: float = 0.1,
        steps: int = 1,
        max_rows: int = 256,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings."""
        super().__init__(
            height,
            width,
            (diffusion_u, diffusion_v),
            {"a": a, "b": b},
            dt=dt,
            spin_up_time=10.0,
            steps=steps,
            max_rows=max_rows,
            failures=failures,
        )

    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of both species."""
        a, b = self.rates["a"], self.rates["b"]
        made = u.square() * v
        return a - (b + 1) * u + made, b * u - made

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Long waves around the rest state."""
        rest = torch.tensor([self.rates["a"], self.rates["b"] / self.rates["a"]], dtype=torch.float64)
        return rest[:, None, None] + 0.5 * waves(rows, self.shape, generator)


class GrayScott(ReactionDiffusion):
    """`f = -u v^2 + feed (1 - u)`, `g = u v^2 - (feed + kill) v`: spots that divide.

    Pearson (1993, Science 261). The rest state (1, 0) is stable, and what is not fed dies out: of the states
    that `start` gives some 5 % have come to rest on 16 x 16 cells, most on 8 x 8, none on 24 x 24.
    """

    fastest = 1.0

    def __init__(
        self,
        height: int = 16,
        width: int = 16,
        *,
        diffusion_u: float = 0.16,
        diffusion_v: float = 0.08,
        feed: float = 0.04,
        kill: float = 0.06,
        dt: float = 2.0,
        steps: int = 1,
        max_rows: int = 256,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings."""
        super().__init__(
            height,
            width,
            (diffusion_u, diffusion_v),
            {"feed": feed, "kill": kill},
            dt=dt,
            spin_up_time=200.0,
            steps=steps,
            max_rows=max_rows,
            failures=failures,
        )

    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of both species."""
        feed, kill = self.rates["feed"], self.rates["kill"]
        made = u * v.square()
        return feed * (1 - u) - made, made - (feed + kill) * v

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Patches with half of the food gone, where a long wave is high."""
        high = torch.sigmoid(8 * (waves(rows, self.shape, generator)[:, 0] - 0.5))
        return torch.stack([1 - 0.5 * high, 0.25 * high], 1)


class FitzHughNagumo(ReactionDiffusion):
    """`f = u - u^3 - v + current`, `g = rate (u - gamma v)`: nerve and heart, pulses and spirals.

    FitzHugh (1961, Biophys. J. 1); u is quick, v slow by the factor `rate`.
    """

    fastest = 12.0

    def __init__(
        self,
        height: int = 16,
        width: int = 16,
        *,
        diffusion_u: float = 0.5,
        diffusion_v: float = 0.0,
        current: float = 0.0,
        rate: float = 0.1,
        gamma: float = 0.5,
        dt: float = 0.25,
        steps: int = 1,
        max_rows: int = 256,
        failures: Any = "raise",  # noqa: ANN401 (the base class checks it)
    ) -> None:
        """Check the settings."""
        super().__init__(
            height,
            width,
            (diffusion_u, diffusion_v),
            {"current": current, "rate": rate, "gamma": gamma},
            dt=dt,
            spin_up_time=10.0,
            steps=steps,
            max_rows=max_rows,
            failures=failures,
        )

    def reaction(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of both species."""
        current, rate, gamma = (self.rates[name] for name in ("current", "rate", "gamma"))
        return u - u**3 - v + current, rate * (u - gamma * v)

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
