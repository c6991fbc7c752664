"""`SpectralMap`: an `OutputMap` of the waves of a large grid, each for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zo.tangents.models.maps.output_map import ALONE, HELD_OUT, RIDGES
from zo.tangents.models.maps.waves import NEVER, SEEN, Waves
from zo.tangents.models.model_tangent import pulled_back

# decision 71:
CLEARLY = 0.25  # of the projector's error in held-out rows: a ridge that leaves more is not put beside it
# decision 76:
TAKEN = 0.1  # of the waves, whose matrix is further from the identity than one mixture of channels
EXACT = 1e-8  # of a mean square error, in the numbers' units: below it neither is better


class SpectralMap:
    """y(k) = m_y(k) + (x(k) - m_x(k)) W(k) for each wave k, x the values of a model and y the box's.

    What `OutputMap` is for vectors, for arrays on a grid whose ends meet, where a map that is the same in all
    cells is a small matrix between the channels for each wave; or between walls, where waves are sines and
    cosines in which the outputs obey a constraint (see `zo.tangents.models.maps.waves`). It takes a few rows
    where a matrix between all numbers would take as many as there are numbers:

        W(k) = Pi(k) + (S(k) + r)^-1 (C(k) - S(k) Pi(k)),

    with S and C the covariances of x(k) with itself and with y(k), r a ridge, and Pi(k) the projector on what
    the channels of y(k) are seen to be: for a velocity without divergence, what is at right angles to k. A
    wave that was not seen stays as it is.

    It is Pi(k) alone unless a ridge halves what that misses of held-out rows. Rows of one trajectory resemble
    one another, so held-out ones are predicted a little better by anything that was fitted to the others, and
    where inputs are smooth most waves are hardly in them: the fitted part then lowers the error of values by
    a tenth, and that of the derivative rises.

    Args:
        waves: the waves of the outputs.
    """

    def __init__(self, waves: Waves) -> None:
        self.waves = waves
        # both means, and the scale of each number; of a map that is not fitted yet there are no numbers
        self._units = torch.empty(0), torch.empty(0), torch.empty(0)
        self._matrix = torch.empty(0)  # `(*waves, channels, channels)`
        self._ridge: float | None = RIDGES[0]

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, scale: Tensor, again: bool = True) -> bool | None:
        """Fit to rows, see `OutputMap.fit`."""
        alone: bool | None = None
        train, unit = len(x) - len(x) // HELD_OUT, scale.to(x)
        if again and train < len(x):
            errors: dict[float | None, float] = {}
            test = slice(train, len(x))
            self._units = x[:train].mean(dim=0), y[:train].mean(dim=0), unit
            sums = self._sums(x[:train], y[:train])
            for ridge in (*RIDGES, None):
                self._matrix = _solved(self.waves, sums, ridge).to(self._dtype(x))
                errors[ridge] = float(((self(x[test]) - y[test]) / unit).square().mean())
            best = min(errors, key=lambda ridge: errors[ridge])
            self._ridge = best if errors[best] + EXACT < CLEARLY * errors[None] else None
            missed = float(((x[test] - y[test]) / unit).square().mean())
            alone = missed + EXACT < ALONE * errors[self._ridge]
        self._units = x.mean(dim=0), y.mean(dim=0), unit
        self._matrix = _solved(self.waves, self._sums(x, y), self._ridge).to(self._dtype(x)).contiguous()
        return alone

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, size)` to `(rows, size)`."""
        mean_in, mean_out, _ = self._units
        return mean_out + self.pushed(x - mean_in)

    def pushed(self, change: Tensor) -> Tensor:
        """Return the change of answers, `(rows, size)`, for a change `(rows, size)` of the model's."""
        scale, lattice = self._units[2], self.waves.lattice
        waves = self.waves.of(lattice.joined(change / scale)).movedim(1, -1)
        answer = (waves[..., None, :] @ self._matrix).squeeze(-2).movedim(-1, 1)
        return scale * lattice.split(self.waves.back(answer))

    def pulled(self, cotangent: Tensor) -> Tensor:
        """The transpose of `pushed`."""
        return pulled_back(self.pushed, cotangent, cotangent)  # it is linear, so that any place will do

    @property
    def takes(self) -> bool:
        """True if it takes a mixture of channels from a tenth of the waves or more."""
        identity = torch.eye(self._matrix.shape[-1], dtype=self._matrix.dtype, device=self._matrix.device)
        difference = (self._matrix - identity).abs().square().sum(dim=(-2, -1))
        return float(difference.mean()) > TAKEN

    def state_dict(self) -> dict[str, Any]:
        """The units and matrices."""
        return {
            "units": self._units,
            "matrix": self._matrix,
            "ridge": self._ridge,
            "ends": (self.waves.periodic, self.waves.odd),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        mean_in, mean_out, scale = (tensor.to(device) for tensor in state["units"])
        self._units, self._ridge = (mean_in, mean_out, scale), state["ridge"]
        self._matrix = state["matrix"].to(device)

    def _dtype(self, x: Tensor) -> torch.dtype:
        return x.dtype.to_complex() if any(self.waves.periodic) else x.dtype

    def _sums(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums `(channels, channels)` for each wave: of x with itself, of x with y, of y with itself."""
        mean_in, mean_out, scale = self._units
        lattice, size = self.waves.lattice, self.waves.lattice.channels
        shape, dtype = (*self.waves.shape, size, size), self._dtype(x.double())
        sums = [torch.zeros(shape, dtype=dtype, device=x.device) for _ in range(3)]
        for row in range(len(x)):  # all at once would take many times the rows' memory
            a, b = (
                self.waves.of(lattice.joined(((values - mean) / scale)[None].double()))[0]
                for values, mean in ((x[row], mean_in), (y[row], mean_out))
            )
            a, b = a.movedim(0, -1), b.movedim(0, -1)
            for total, (left, right) in zip(sums, ((a, a), (a, b), (b, b)), strict=True):
                total += left.conj()[..., :, None] * right[..., None, :]
        return sums[0], sums[1], sums[2]


def _solved(waves: Waves, sums: Sequence[Tensor], ridge: float | None) -> Tensor:
    """W for each wave; without a ridge the projector alone."""
    of_inputs, cross, of_outputs = sums
    values, vectors = torch.linalg.eigh(of_outputs)
    largest = waves.inner(values[..., -1:])
    span = values > NEVER**2 * largest
    span |= largest <= SEEN**2 * largest.max()
    projector = (vectors * span[..., None, :]) @ vectors.mH
    if ridge is None or not bool(of_inputs.abs().max() > 0):
        return projector
    gram = of_inputs.clone()
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge * float(of_inputs.diagonal(dim1=-2, dim2=-1).real.max()))
    return projector + torch.linalg.solve(gram, cross - of_inputs @ projector)
