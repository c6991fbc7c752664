"""What is measured of velocities: divergence, energy, a probe and its spectrum, how long a rollout holds.

All figures have no unit: velocities are divided by the inflow's speed U, lengths by the cylinder's
diameter D, so divergence is in U / D and energy in U squared; forces are over U^2 D / 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import periodogram
from torch import Tensor

from simulators.wake_flow.forces import Forces
from simulators.wake_flow.geometry import CENTRE, RADIUS, SPEED, Channel
from simulators.wake_flow.staggered import divergence

DIAMETER = 2 * RADIUS
WAKE = ((-1.5, 1.5), (0.5, 6.0))  # window across and along, in diameters from the cylinder's centre
PROBE = (0.0, 2.5)  # place across and along, likewise: the middle of the channel
PADDING = 16  # zeros behind the signal, in its lengths: a finer grid of frequencies, no better resolution
PERIODS = 2.0  # the fewest in a record: with fewer, the peak runs into the one at the negative frequency
QUIET = 1e-3  # standard deviation below which nothing sheds, in U
LIMIT = 10.0  # a mean error of ten times the inflow's speed: no flow any more, though its numbers are finite


@dataclass(frozen=True)
class Gauges:
    """The instruments on one grid; `Gauges.of` makes them.

    Attributes:
        cell: side of a cell.
        wake: `(2, height, width)`, True on faces within `WAKE`.
        fluid: `(height, width)`, True in cells outside the cylinder.
        forces: drag and lift coefficients from two velocities, a step apart.
    """

    cell: float
    wake: Tensor
    fluid: Tensor
    forces: Forces

    @classmethod
    def of(cls, channel: Channel, dt: float = 1.0) -> Gauges:
        """For the grid of `channel` and steps of `dt`."""
        across, along = face_places(channel)
        (left, right), (near, far) = WAKE
        wake = (left <= across) & (across <= right) & (near <= along) & (along <= far)
        return cls(channel.cell, wake, torch.from_numpy(channel.masks.active > 0), Forces(channel, dt))

    def wake_error(self, difference: Tensor) -> Tensor:
        """Mean absolute value of `(rows, 2, height, width)` over the faces in the wake: `(rows,)`."""
        return difference[:, self.wake].abs().mean(dim=1)

    def divergences(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and largest absolute net outflow of the cells outside the cylinder.

        Args:
            velocity: `(rows, 2, height, width)`.

        Returns:
            Two `(rows,)`, in U / D.
        """
        outflow = divergence(velocity, self.cell)[:, self.fluid].abs() * (DIAMETER / SPEED)
        return outflow.mean(dim=1), outflow.amax(dim=1)

    def probe(self, velocity: Tensor) -> Tensor:
        """The velocity across the stream at `PROBE`, interpolated: `(rows,)`, in U."""
        column = (CENTRE[0] + PROBE[0] * DIAMETER) / self.cell  # left faces begin at the wall
        row = (CENTRE[1] + PROBE[1] * DIAMETER) / self.cell - 0.5
        i, j = int(column), int(row)
        right, upper = column - i, row - j
        below, above = (
            velocity[:, 0, line, i] * (1 - right) + velocity[:, 0, line, i + 1] * right for line in (j, j + 1)
        )
        return (below * (1 - upper) + above * upper) / SPEED


def face_places(channel: Channel) -> tuple[Tensor, Tensor]:
    """Where the faces of `(2, height, width)` are, across and along from the cylinder's centre, in D."""
    columns, rows = torch.arange(channel.width), torch.arange(channel.height)[:, None]
    # x on left faces, y on upper ones
    across = torch.stack([(columns + offset).expand(channel.height, -1) for offset in (0.0, 0.5)])
    along = torch.stack([(rows + offset).expand(-1, channel.width) for offset in (0.5, 1.0)])
    cell = channel.cell
    return (across * cell - CENTRE[0]) / DIAMETER, (along * cell - CENTRE[1]) / DIAMETER


def kinetic_energy(velocity: Tensor) -> Tensor:
    """Half the mean square of each component over its faces, summed: `(rows,)`, in U^2."""
    return velocity.square().mean(dim=(-2, -1)).sum(dim=-1) / (2 * SPEED**2)


def lost(errors: np.ndarray) -> np.ndarray:
    """Steps that a rollout no longer has: from the first error on that is no number or above `LIMIT`.

    `(rollouts, steps)`, errors to truth.
    """
    return np.logical_or.accumulate(~(errors <= LIMIT), axis=1)


def stability(errors: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Steps until the error passes that of the baseline at the same step, or all of them.

    Args:
        errors: `(rollouts, steps)`; a step that is lost has passed it.
        baseline: likewise, of the solver alone; where it is lost itself, it is passed by no finite error.

    Returns:
        `(rollouts,)`, whole numbers from 0 to `steps`.
    """
    limit = np.where(np.isfinite(baseline), baseline, np.inf)
    passed = ~(np.isfinite(errors) & (errors <= limit))
    return np.where(passed.any(axis=1), passed.argmax(axis=1), errors.shape[1])


def spectrum(signal: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Power spectral density: Hann window, mean taken out.

    One window as long as the record, for it holds few periods; Welch's shorter ones could not tell
    them from the mean.

    Args:
        signal: `(..., times)`, in U.
        dt: time between samples.

    Returns:
        Strouhal numbers f D / U `(frequencies,)` and the density over them `(..., frequencies)`, in U^2.
    """
    times = signal.shape[-1]
    frequency, power = periodogram(
        signal, 1 / dt, window="hann", nfft=PADDING * times, detrend="constant", axis=-1
    )
    scale = 2 * RADIUS / SPEED
    return frequency * scale, power / scale


def strouhal(signal: np.ndarray, dt: float) -> float:
    """Number f D / U of the highest peak, by a parabola through the logarithms of it and its neighbours.

    Of a sine it is within 1 % from two periods in the record on, within 0.1 % from four on.

    Args:
        signal: `(times,)`, in U.
        dt: time between samples.

    Returns:
        NaN where the signal is not finite, does not move, or the record has fewer than `PERIODS` of it.
    """
    if not np.isfinite(signal).all() or signal.std() < QUIET:
        return np.nan
    numbers, power = spectrum(signal, dt)
    peak = int(power.argmax())
    if not 0 < peak < len(power) - 1 or not (power[peak - 1 : peak + 2] > 0).all():
        return np.nan
    left, middle, right = np.log(power[peak - 1 : peak + 2])
    curvature = left - 2 * middle + right
    shift = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
    found = float(numbers[peak] + shift * numbers[1])
    return found if found >= PERIODS * resolution(len(signal), dt) else np.nan


def resolution(times: int, dt: float) -> float:
    """The Strouhal number of one period in a record of `times` samples."""
    return 2 * RADIUS / SPEED / (times * dt)
