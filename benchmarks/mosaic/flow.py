"""Two-dimensional periodic flow: random starts, reference trajectories, and projections of velocities.

Velocities are `(..., 2, points, points)`, first the component along the first axis, at the middle of the
cells of a square of side 2 pi. The task is Mosaic's (Navier-Stokes, viscosity .001, random starts with their
energy around wavenumber 2): Rehmann, Zimmermann, Häfner 2026, arXiv 2606.27895; its solver-in-the-loop study
is pull request 116 of github.com/pasteurlabs/mosaic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 2 * math.pi
DRAWN = 8  # wavenumbers of starts, so that starts on all grids are the same


def wavenumbers(points: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Along both axes, each `(points, points)`."""
    along = np.fft.fftfreq(points, 1 / points)
    first, second = np.meshgrid(along, along, indexing="ij")
    return first, second


def start(
    points: int, seed: int, around: float = 2.0, width: float = 0.5, fastest: float = 0.5
) -> NDArray[Any]:
    """A random velocity without divergence, `(2, points, points)` in float64.

    Args:
        points: Along a side, at least 17.
        seed: Of the phases.
        around: The wavenumber that has most energy.
        width: Of the ring of wavenumbers.
        fastest: The largest speed, on 128 points.
    """

    def velocity(points: int) -> NDArray[Any]:
        phases = np.random.default_rng(seed).uniform(0, 2 * math.pi, (2 * DRAWN + 1, 2 * DRAWN + 1))
        stream = np.zeros((points, points), dtype=complex)
        for i in range(-DRAWN, DRAWN + 1):
            for j in range(-DRAWN, DRAWN + 1):
                size = math.exp(-0.5 * ((math.hypot(i, j) - around) / width) ** 2)
                stream[i, j] = size * np.exp(1j * phases[i, j]) * points**2
        stream[0, 0] = 0
        first, second = wavenumbers(points)
        parts = np.stack([1j * second * stream, -1j * first * stream])
        return np.fft.ifft2(parts).real

    scale = fastest / np.hypot(*velocity(128)).max()
    return velocity(points) * scale


def trajectory(
    velocity: NDArray[Any], frames: int, seen: int, viscosity: float, span: float, substeps: int
) -> NDArray[Any]:
    """What a pseudo-spectral solver gives, `(frames + 1, 2, seen, seen)` in float32, the start included.

    Vorticity by Runge-Kutta of fourth order with exact diffusion, products freed of aliasing; frames are
    restricted to `seen` points by their Fourier modes.

    Args:
        velocity: `(2, points, points)`.
        frames: How many follow.
        seen: Points of what is returned.
        viscosity: Of the fluid.
        span: Of time between frames.
        substeps: In a frame.
    """
    points, step = velocity.shape[-1], span / substeps
    first, second = wavenumbers(points)
    square = first**2 + second**2
    inverse = 1 / np.where(square == 0, 1, square)
    kept = ((np.abs(first) < points / 3) & (np.abs(second) < points / 3)).astype(float)
    half = np.exp(-viscosity * square * step / 2)

    def rate(vorticity: NDArray[Any]) -> NDArray[Any]:
        stream = vorticity * inverse
        fields = [1j * second * stream, -1j * first * stream, 1j * first * vorticity, 1j * second * vorticity]
        along, across, slope, other = np.fft.ifft2(np.stack(fields)).real
        return -kept * np.fft.fft2(along * slope + across * other)

    along, across = np.fft.fft2(velocity)
    vorticity = kept * (1j * first * across - 1j * second * along)
    modes = np.fft.fftfreq(seen, 1 / seen).astype(int)
    shown = []
    for frame in range(frames + 1):
        for _ in range(substeps if frame else 0):
            a = rate(vorticity)
            b = rate(half * (vorticity + step / 2 * a))
            c = rate(half * vorticity + step / 2 * b)
            d = rate(half * (half * vorticity + step * c))
            moved = half * (half * vorticity + step / 6 * (half * a + 2 * (b + c)))
            vorticity = moved + step / 6 * d
        stream = vorticity * inverse
        parts = np.stack([1j * second * stream, -1j * first * stream])
        parts = parts[:, modes][:, :, modes] * (seen / points) ** 2
        parts[:, seen // 2], parts[:, :, seen // 2] = 0, 0  # the Nyquist modes have no partner
        shown.append(np.fft.ifft2(parts).real)
    return np.stack(shown).astype(np.float32)


def projected(velocity: Tensor) -> Tensor:
    """The part of a velocity `(..., 2, points, points)` without divergence, mean and Nyquist modes."""
    points = velocity.shape[-1]
    first, second = (torch.tensor(each, dtype=velocity.dtype) for each in wavenumbers(points))
    square = first.square() + second.square()
    kept = (first.abs() < points / 2) & (second.abs() < points / 2) & (square > 0)
    along, across = torch.fft.fft2(velocity).unbind(-3)
    divergence = (first * along + second * across) / square.clamp_min(1)
    parts = torch.stack([along - first * divergence, across - second * divergence], dim=-3)
    return torch.fft.ifft2(parts * kept).real


def half_cell(points: int, sign: int) -> NDArray[Any]:
    """Factors of the Fourier modes `(2, points, points)` that move component i half a cell along axis i.

    Middles of cells to the faces above them for sign 1 and back for -1: nothing is smoothed, and all but
    the Nyquist modes come back.
    """
    along = [each * (np.abs(each) < points / 2) for each in wavenumbers(points)]
    kept = [np.abs(each) < points / 2 for each in wavenumbers(points)]
    return np.stack(
        [part * np.exp(sign * 1j * each * SIDE / points / 2) for each, part in zip(along, kept, strict=True)]
    )
