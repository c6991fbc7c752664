"""`python -m benchmarks flux_force`: a network is fitted to the statistics of chaotic runs that it forces.

    python -m benchmarks flux_force --size ci       a ring of 20 cells and short runs; written nowhere
    python -m benchmarks flux_force --size small    ten seeds of each method

The problem is `flux-force` of the Ensemble Kalman Inversion Race (Gjini, Morzfeld, Dunbar and Schneider,
arXiv 2511.15853; `examples/EKIRace` of EnsembleKalmanProcesses.jl).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

F64 = torch.float64
HIDDEN, WEIGHTS = 20, 61
STEP, APART = 0.01, 50.0  # of time, and windows between states of whose covariance a start is drawn
SPREAD, WIDER, START = 0.1, 2.5, 0.1  # of the prior, of the data's covariance, of the states' covariance


@dataclass(frozen=True)
class Setting:
    """Sizes of the problem.

    Attributes:
        cells: of the ring.
        begin: steps of a run that are left out.
        steps: of a run, these and those whose statistics are taken.
        runs: side by side, whose windows give the noise of the statistics.
        windows: of each of these.
        learning: steps in which truth and prior are fitted.
    """

    cells: int = 100
    begin: int = 400
    steps: int = 5400
    runs: int = 200
    windows: int = 10
    learning: int = 20_000


def march(state: Array, forcing: Array, steps: int) -> tuple[Array, Array, Array]:
    """Lorenz-96 by the classical Runge-Kutta method: the last states, and means and spreads of the run.

    Args:
        state: `(rows, cells)`.
        forcing: of each cell, `(rows, cells)`.
        steps: how many.
    """
    x, force = state.T.copy(), np.ascontiguousarray(forcing.T)
    ring, slope = np.empty((len(x) + 3, x.shape[1])), np.empty_like(x)
    total, squares = np.zeros_like(x), np.zeros_like(x)
    first = x.copy()

    def change(at: Array) -> Array:
        ring[2:-1], ring[:2], ring[-1] = at, at[-2:], at[0]
        np.subtract(ring[3:], ring[:-3], out=slope)
        np.multiply(slope, ring[1:-2], out=slope)
        np.subtract(slope, at, out=slope)
        np.add(slope, force, out=slope)
        return slope

    for _ in range(steps):
        k = change(x)
        new = x + STEP / 6 * k
        k = change(x + STEP / 2 * k)
        new += STEP / 3 * k
        k = change(x + STEP / 2 * k)
        new += STEP / 3 * k
        k = change(x + STEP * k)
        new += STEP / 6 * k
        x = new
        moved = x - first
        total += moved
        squares += moved * moved
    mean = total / steps
    spread = np.sqrt((squares / steps - mean**2) * steps / max(steps - 1, 1))
    return x.T.copy(), (first + mean).T, spread.T


def forced(weights: Tensor, place: Tensor) -> Tensor:
    """The network, `(rows, 61)`, at places `(cells,)`: the forcing `(rows, cells)`."""
    w, b, out = weights[:, :HIDDEN], weights[:, HIDDEN : 2 * HIDDEN], weights[:, 2 * HIDDEN : -1]
    hidden = torch.tanh(place[:, None] * w[:, None] + b[:, None])
    return (hidden @ out[..., None])[..., 0] + weights[:, -1:]


class Problem:
    """Data, their noise, the prior, and runs.

    Attributes:
        prior: mean of the weights.
        truth: weights of which the data are.
        data: statistics `(2 cells,)`.
        covariance: of the data.
        rows: run so far.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.rows = setting, 0
        generator = torch.Generator().manual_seed(11)
        rng = np.random.default_rng(11)
        self.place = torch.arange(setting.cells, dtype=F64) * 10 / setting.cells - 5
        bound = (6 / (HIDDEN + 1)) ** 0.5
        begin = torch.zeros(WEIGHTS, dtype=F64)
        for part in (slice(HIDDEN), slice(2 * HIDDEN, -1)):
            begin[part] = bound * (2 * torch.rand(HIDDEN, dtype=F64, generator=generator) - 1)
        self.truth = fitted(begin, lambda x: 8 + 6 * torch.sin(0.4 * torch.pi * x), setting.learning, generator)
        self.prior = fitted(
            self.truth,
            lambda x: 8.02 + 6.5 * torch.sin(1.02 * 0.4 * torch.pi * x + 0.2),
            setting.learning,
            generator,
        )
        force = forced(self.truth[None], self.place).numpy().repeat(setting.runs, 0)
        state = march(rng.normal(size=force.shape), force, 5 * setting.begin)[0]
        samples, states = [], []
        for _ in range(setting.windows):
            state, mean, spread = march(state, force, setting.steps - setting.begin)
            samples.append(np.hstack([mean, spread]))
            states.append(state)
        self.covariance = WIDER * np.cov(np.vstack(samples).T)
        self.root = np.linalg.cholesky(START * np.cov(np.vstack(states).T))
        values, vectors = np.linalg.eigh(self.covariance)
        self.whiten = vectors @ np.diag(values**-0.5) @ vectors.T
        self.start = state[0]
        self.noise = rng
        self.data = self.run(force[:1], rng, exact=True)[0]
        self.rows = 0

    def run(self, forcing: Array, rng: np.random.Generator, *, exact: bool = False) -> Array:
        """Statistics `(rows, 2 cells)` of runs from perturbed starts."""
        state = self.start + (0 if exact else 1) * rng.normal(size=forcing.shape) @ self.root.T
        self.rows += len(state)
        state = march(state, forcing, self.setting.begin)[0]
        _, mean, spread = march(state, forcing, self.setting.steps - self.setting.begin)
        return np.hstack([mean, spread])

    def error(self, answers: Array) -> Array:
        """The root mean square of what is missed, in units of the data's covariance."""
        return np.sqrt(np.square((answers - self.data) @ self.whiten).mean(-1))


def fitted(weights: Tensor, wanted: Callable[[Tensor], Tensor], steps: int, generator: torch.Generator) -> Tensor:
    """Weights that are fitted to a noisy curve, from others."""
    x = torch.arange(-500, 501, dtype=F64) / 100
    y = wanted(x) + 0.2 * torch.randn(len(x), dtype=F64, generator=generator)
    weights = weights.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([weights], lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (forced(weights[None], x)[0] - y).square().mean().backward()
        optimizer.step()
    return weights.detach()
