"""The spectrum of a signal at a probe, and the Strouhal number at its peak."""

from __future__ import annotations

import numpy as np
from scipy.signal import periodogram

from simulators.wake_flow.geometry import RADIUS, SPEED

PADDING = 16  # zeros behind the signal, in its lengths: a finer grid of frequencies, no better resolution
PERIODS = 2.0  # the fewest in a record: with fewer, the peak runs into the one at the negative frequency
QUIET = 1e-3  # standard deviation below which nothing sheds, in U


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
