"""Flows on periodic domains by Fourier modes: Kuramoto-Sivashinsky on rings, vorticity on squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from blackbox.checks import check_count, check_number
from blackbox.errors import ConfigurationError, DtypeError, ShapeError
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec
from simulators.simulator import Simulator, count, flag, number
from simulators.state_system import StateSystem

SERIES = 0.1  # |z| below which the second coefficient comes from its series: the formula cancels


@dataclass(kw_only=True, eq=False, repr=False)
class KuramotoSivashinskyETD(Simulator):
    """`u_t = -u u_x - u_xx - u_xxxx` on rings whose length each row chooses, as List et al. (2024) solve it.

    The state is `(1, points)`. The linear part is exact, `-u u_x = -(u^2)_x / 2` of first order in `dt`
    (ETD1) or second (ETDRK2; Cox & Matthews 2002, J. Comput. Phys. 176). Products are not freed of
    aliasing. Source: List, Chen, Bali & Thuerey (2024, arXiv 2402.12971): 48 points, dt = .5, two steps a
    call; there ETD1 is the solver in the loop, which alone blows up after some calls, and ETDRK2 the
    reference.

    Rows do not interact. A call gives values alone; `advance` is what it does, differentiable by autograd.

    Args:
        points: of the grid, at least 8.
        dt: time step.
        order: 1 for ETD1, 2 for ETDRK2.
        unit: of the lengths that rows give; the default makes them numbers around 1 for rings of 16 pi.
        steps: time steps per call.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    arrays = "torch"

    points: int = count(48, least=8)
    dt: float = number(0.5, above=0)
    order: int = 1
    unit: float = number(16 * math.pi, above=0)
    steps: int = count(2)

    def _prepare(self) -> None:
        """The state's and the length's specs."""
        check_order(type(self).__name__, self.order)
        self.shape = (1, self.points)
        state = ArraySpec("state", self.shape)
        self.inputs = (state, ArraySpec("length", (), differentiable=False))
        self.outputs = (state,)

    def evaluate_rows(self, state: Tensor, length: Tensor) -> Tensor:
        """All rows: `(rows, 1, points)` and `(rows,)` to `(rows, 1, points)`."""
        with torch.no_grad():
            return self.advance(state, length)

    def advance(self, state: Tensor, length: Tensor) -> Tensor:
        """What a call does, differentiable with respect to the state.

        Args:
            state: `(..., 1, points)`, float32 or float64.
            length: `(...)`, of the ring in `unit`.

        Returns:
            `(..., 1, points)`, in the state's dtype.

        Raises:
            ShapeError: the state's trailing axes or the shape of `length` do not fit.
            DtypeError: the state is neither float32 nor float64.
        """
        if state.shape[-2:] != self.shape or length.shape != state.shape[:-2]:
            raise ShapeError(
                f"{self!r}: expected a state (..., 1, {self.points}) and a length (...), got "
                f"{tuple(state.shape)} and {tuple(length.shape)}. Every row has its own length."
            )
        check_dtype(self, state)
        modes = torch.arange(self.points // 2 + 1, dtype=torch.float64, device=state.device)
        wavenumbers = 2 * math.pi / self.unit * modes / length.detach().double()[..., None, None]
        slope = (-0.5j * wavenumbers).to(state.dtype.to_complex())
        coefficients = [c.to(state.dtype) for c in etd(wavenumbers**2 - wavenumbers**4, self.dt)]

        def product(u: Tensor) -> Tensor:
            return slope * torch.fft.rfft(torch.fft.irfft(u, self.points).square())

        u = torch.fft.rfft(state)
        for _ in range(self.steps):
            u = etd_step(u, product, coefficients, self.order)
        return torch.fft.irfft(u, self.points)

    def start(self, rows: int, seed: int, length: Tensor) -> Tensor:
        """Sums of the waves that grow, `(rows, 1, points)` in float64, for rings `length` `(rows,)` long.

        Their mean square is .1, some 20 times less than later on: larger ones could blow up.

        Raises:
            ConfigurationError: `rows` is no whole number above 0, or `seed` none of 0 or more.
        """
        check_count(f"{self!r}.start", "rows", rows)
        check_count(f"{self!r}.start", "seed", seed, least=0)
        generator = torch.Generator().manual_seed(seed)
        growing = (length.double() * self.unit / (2 * math.pi)).clamp(1, self.points // 3)[:, None, None]
        modes = torch.arange(self.points // 2 + 1)
        shape = rows, 1, len(modes), 2
        amplitudes = torch.view_as_complex(torch.randn(shape, generator=generator, dtype=torch.float64))
        amplitudes = amplitudes * ((modes > 0) & (modes <= growing))
        return torch.fft.irfft(amplitudes, self.points) * self.points * (0.1 / (4 * growing)) ** 0.5


@dataclass(eq=False, repr=False)
class Vorticity(StateSystem):
    """`w_t = -u . grad(w) + nu laplace(w) - drag w + forcing`, `laplace(psi) = -w`, on a square of side 2 pi.

    Two-dimensional incompressible flow, periodic: the velocity is `u = (psi_y, -psi_x)`, found from the
    vorticity by one Poisson solve with FFTs, so that every cell feels every other within a call. The state is
    `(1, points, points)`, vorticity at `[y, x]`. With `stirring` it is Kolmogorov flow: the force
    `stirring * sin(waves y)` along x, hence `forcing = -stirring waves cos(waves y)`. Without it turbulence
    decays.

    Pseudo-spectral: derivatives and diffusion are exact for the modes of the grid; in time the linear part is
    exact, advection of first order (ETD1) or second (ETDRK2). With `dealias` modes from points / 3 on neither
    enter nor receive a product (Orszag's 2/3 rule). The mean of the vorticity decays with the drag alone.

    Args:
        points: along each side, at least 8.
        viscosity: nu, 0 or more.
        drag: 0 or more, as in layers that rub against a floor.
        stirring: amplitude of the force.
        waves: of the force across the square, at most half as many as points: more look like fewer there.
        dt: time step.
        order: 1 for ETD1, 2 for ETDRK2.
        dealias: whether products are freed of aliasing.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 0.0  # with stirring a state needs some 20 to forget how it was drawn

    points: int = count(64, least=8)
    _: KW_ONLY
    viscosity: float = number(1e-3, least=0)
    drag: float = number(0.0, least=0)
    stirring: float = number(0.0)
    waves: int = count(4)
    dt: float = number(0.02, above=0)
    order: int = 2
    dealias: bool = flag(True)
    max_rows: int = count(64)

    def _prepare(self) -> None:
        """Compute the coefficients."""
        name = type(self).__name__
        check_order(name, self.order)
        check_number(name, "waves", self.waves, most=self.points // 2, mend="Take more points.")
        points, self.shape = self.points, (1, self.points, self.points)
        along = torch.arange(points // 2 + 1, dtype=torch.float64)[None]
        across = (torch.fft.fftfreq(points, dtype=torch.float64) * points)[:, None]
        square = along**2 + across**2
        stream = torch.where(square > 0, 1 / square, 0)  # a mean of the vorticity moves nothing
        # the highest mode's sine is not on the grid, so it has no derivative
        x, y = along * (along < points / 2), across * (across > -points / 2)
        kept = torch.ones_like(square)
        if self.dealias:
            kept = ((along < points / 3) & (across.abs() < points / 3)).double()
        height = 2 * math.pi * torch.arange(points, dtype=torch.float64)[:, None] / points
        force = -self.stirring * self.waves * torch.cos(self.waves * height).expand(points, points)
        velocity_and_slope = torch.broadcast_tensors(1j * y * stream, -1j * x * stream, 1j * x, 1j * y)
        derivatives = torch.stack(velocity_and_slope) * kept
        linear = -self.viscosity * square - self.drag
        self._tables = (derivatives, kept, torch.fft.rfft2(force), *etd(linear, self.dt))

    def _step(self, state: Tensor) -> Tensor:
        derivatives, kept, force, *coefficients = self._tables_for(state)

        def advection(w: Tensor) -> Tensor:
            u, v, w_x, w_y = torch.fft.irfft2(derivatives * w[..., None, :, :], state.shape[-2:]).unbind(-3)
            return force - kept * torch.fft.rfft2(u * w_x + v * w_y)

        after = etd_step(torch.fft.rfft2(state), advection, coefficients, self.order)
        return torch.fft.irfft2(after, state.shape[-2:])

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Eddies of two to six waves across, of root mean square velocity 1."""
        noise = torch.randn(rows, *self.shape, generator=generator, dtype=torch.float64)
        along, across = torch.arange(self.points // 2 + 1)[None], torch.fft.fftfreq(self.points)[:, None]
        square = along**2 + (across * self.points) ** 2
        modes = torch.fft.rfft2(noise) * ((square >= 4) & (square <= 36))
        velocity = torch.fft.irfft2(modes / square.clamp_min(1).sqrt(), self.shape[-2:])
        energy = velocity.square().mean((1, 2, 3), keepdim=True)
        return torch.fft.irfft2(modes, self.shape[-2:]) / energy.sqrt()


def resampled(state: Tensor, points: int) -> Tensor:
    """A periodic field `(..., n, n)` on a grid of `points` across, coarser or finer: `(..., points, points)`.

    Modes that both grids carry stay as they are, but for the highest of an even grid, whose sine is missing.

    Args:
        state: n even.
        points: even.
    """
    modes = torch.fft.rfft2(state)
    half = min(points, state.shape[-1]) // 2
    full = torch.zeros(*state.shape[:-2], points, points // 2 + 1, dtype=modes.dtype, device=modes.device)
    full[..., :half, :half] = modes[..., :half, :half]
    full[..., 1 - half :, :half] = modes[..., 1 - half :, :half]
    return torch.fft.irfft2(full, (points, points)) * (points / state.shape[-1]) ** 2


def etd(linear: Tensor, dt: float) -> tuple[Tensor, Tensor, Tensor]:
    """`exp(z)`, `dt (exp(z) - 1) / z` and `dt (exp(z) - 1 - z) / z^2` for `z = linear dt`, in float64."""
    z = linear * dt
    small = z.abs() < SERIES
    safe = torch.where(small, 1.0, z)
    first = sum(z**n / math.factorial(n + 1) for n in range(12))
    second = sum(z**n / math.factorial(n + 2) for n in range(12))
    grown = torch.expm1(safe)
    return (
        torch.exp(z),
        dt * torch.where(small, first, grown / safe),
        dt * torch.where(small, second, (grown - safe) / safe**2),
    )


def etd_step(
    modes: Tensor,
    rest: Callable[[Tensor], Tensor],
    coefficients: Sequence[Tensor],
    order: int,
) -> Tensor:
    """One step of modes whose linear part is in `etd`'s coefficients: ETD1, or ETDRK2."""
    whole, first, second = coefficients
    now = rest(modes)
    ahead = whole * modes + first * now
    return ahead if order == 1 else ahead + second * (rest(ahead) - now)


def check_order(name: str, order: int) -> None:
    """Refuse what is neither ETD1 nor ETDRK2."""
    if check_count(name, "order", order) > 2:
        raise ConfigurationError(f"{name}, order: expected 1 (ETD1) or 2 (ETDRK2), got {order!r}.")


def check_dtype(box: BlackBoxFunction, state: Tensor) -> None:
    """Refuse what FFTs are not made for."""
    if state.dtype not in (torch.float32, torch.float64):
        raise DtypeError(
            f"{box!r}, state: expected float32 or float64, got {str(state.dtype)[6:]}. "
            "Convert it with .float() or .double()."
        )
