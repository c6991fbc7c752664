"""`KuramotoSivashinsky`: chaos in space and time on a ring, by Fourier modes and exponential time steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.simulator import count, number
from simulators.state_system import StateSystem

CONTOUR = 32  # points on the upper half circle; the coefficients are exact to rounding from some 16 on


@dataclass(kw_only=True, eq=False, repr=False)
class KuramotoSivashinsky(StateSystem):
    """`u_t = -u u_x - u_xx - u_xxxx` on a ring of the given length.

    The state is `(1, points)`, values of u at equal distances. ETDRK4 after Kassam & Trefethen (2005,
    SIAM J. Sci. Comput. 26): the linear part is exact, the rest of fourth order in `dt`, or third while
    damping within a step is strong. The product is free of aliasing: modes from points / 3 on neither enter
    nor receive it. The mean of u is conserved.

    With a length of 22 the largest Lyapunov exponent is .043 to .048 (Edson et al. 2019, ANZIAM J. 61;
    Cvitanović et al. 2010, SIAM J. Appl. Dyn. Syst. 9).

    Args:
        points: of the grid, at least 8; for the same accuracy in proportion to the length.
        length: of the ring; waves grow that are longer than 2 pi.
        dt: time step.
        steps: time steps per call.
        max_rows: rows advanced at once; more are taken in turn.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    spin_up_time = 200.0  # on a ring of 22 a perturbation doubles in some 15

    points: int = count(64, least=8)
    length: float = number(22.0, above=0)
    dt: float = number(0.25, above=0)
    max_rows: int = count(1024)

    def _prepare(self) -> None:
        """Compute the coefficients."""
        self.shape = (1, self.points)
        modes = torch.arange(self.points // 2 + 1, dtype=torch.float64)
        wavenumbers = 2 * math.pi / self.length * modes
        kept = modes < self.points / 3
        # d/dx (-u^2 / 2), for the modes whose product does not come back as another mode
        slope = torch.complex(torch.zeros_like(modes), -0.5 * wavenumbers * kept)
        self._tables = (kept.double(), slope, *etdrk4(wavenumbers**2 - wavenumbers**4, self.dt))

    def _step(self, state: Tensor) -> Tensor:
        kept, slope, whole, half, first, begin, middle, end = self._tables_for(state)

        def product(modes: Tensor) -> Tensor:
            return slope * torch.fft.rfft(torch.fft.irfft(kept * modes, self.points).square())

        u = torch.fft.rfft(state)
        at_u = product(u)
        a = half * u + first * at_u
        at_a = product(a)
        b = half * u + first * at_a
        at_b = product(b)
        at_c = product(half * a + first * (2 * at_b - at_u))
        after = whole * u + begin * at_u + middle * (at_a + at_b) + end * at_c
        return torch.fft.irfft(after, self.points)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        growing = max(1, min(int(self.length / (2 * math.pi)), self.points // 3))
        amplitudes = torch.randn(rows, 1, growing, 2, generator=generator, dtype=torch.float64)
        modes = torch.zeros(rows, 1, self.points // 2 + 1, dtype=torch.complex128)
        modes[..., 1 : growing + 1] = torch.view_as_complex(amplitudes)
        return torch.fft.irfft(modes, self.points) * self.points / (2 * growing) ** 0.5


def etdrk4(linear: Tensor, dt: float) -> tuple[Tensor, ...]:
    """Coefficients of ETDRK4 for real `linear` (modes,), in float64.

    They are means over circles around `linear * dt`: the formulas themselves cancel near 0 (Kassam &
    Trefethen 2005).

    Returns:
        exp(L dt), exp(L dt / 2), the weight of the stages, and those of begin, middle (the sum of both
        middle stages) and end in the step, each `(modes,)`.
    """
    angles = math.pi * (torch.arange(CONTOUR, dtype=torch.float64) + 0.5) / CONTOUR
    z = linear[:, None] * dt + torch.exp(1j * angles)  # the lower half is its conjugate
    e = torch.exp(z)

    def mean(values: Tensor) -> Tensor:
        return dt * values.mean(1).real

    return (
        torch.exp(linear * dt),
        torch.exp(linear * dt / 2),
        mean((torch.exp(z / 2) - 1) / z),
        mean((-4 - z + e * (4 - 3 * z + z**2)) / z**3),
        mean(2 * (2 + z + e * (z - 2)) / z**3),
        mean((-4 - 3 * z - z**2 + e * (4 - z)) / z**3),
    )
