"""`python -m benchmarks flux_force`: weights of a forcing from the statistics of chaotic runs that it drives.

    python -m benchmarks flux_force --size ci       a ring of 20 cells and short runs; written nowhere
    python -m benchmarks flux_force --size small    ten seeds of each method on two problems

The problem is `flux-force` of the Ensemble Kalman Inversion Race (Gjini, Morzfeld, Dunbar and Schneider,
arXiv 2511.15853; `examples/EKIRace` of EnsembleKalmanProcesses.jl). A network of 61 weights forces the 100
cells of Lorenz-96 by their places. Data are means and standard deviations of each cell from time 4 to 54, of
a run by a network that was fitted to 8 + 6 sin(.4 pi x). Their covariance is 2.5 times that of such windows.
The prior's mean was fitted to 8.02 + 6.5 sin(.408 pi x + .2), from the first one's weights on, and its spread
is .1 for each weight. Each run begins at a perturbed state. The race is won where one run at the mean of an
ensemble misses the data by less than one, the root mean square in units of that covariance. It ends after 20
updates of 80 to 100 members: 1,600 to 2,000 runs.

Departures: windows that give covariances are of 200 runs side by side, ten of each, in place of one long run.
Networks are fitted to the whole curve in 20,000 steps of Adam. In the published script both networks are one
object, which would make the prior's mean the truth; here they are two. The ensemble has no inflation (the
script's is a thousandth). As there, an ensemble's runs at its mean are not counted; all runs of ours are.

Ensembles are of TEKI with steps of length one, the script's, or by the data misfit (Iglesias and Yang, 2021).
Ours are `zo.fit_field` over the weights from the prior's mean, one run for each evaluation; the objective is
the square of the miss and the prior's. The box is from forcing to statistics, and the network in front of it
keeps its derivative; or all of it is the box. Where neither a ring nor a grid is said, a `KernelTangent`
first learns from 40 draws of the prior, without which it stalls after one run. Results go into
`benchmarks/results/posterior/flux_force.json` as they come, and what is there is not measured again.
`flux_force.md` beside it has the table.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import zo
from benchmarks import protocol
from blackbox import ArraySpec, BlackBoxFunction, Grid
from tasks.folder import atomic

Array = NDArray[np.float64]

FILE = protocol.RESULTS / "posterior" / "flux_force.json"
PROBLEMS, SEEDS = (11, 12), range(1, 11)
F64 = torch.float64
HIDDEN, WEIGHTS, SPREAD = 20, 61, 0.1  # of the network, and of the prior
STEP = 0.01  # of time
WIDER, PERTURBED = 2.5, 0.1  # of covariances: of the data, and of the starts, in that of states
UPDATES, MOST, DRAWS, FRESH = 20, 200, 40, 40  # of an ensemble; runs of ours, first draws, runs to judge


@dataclass(frozen=True)
class Setting:
    """Sizes of the problem."""

    cells: int = 100
    begin: int = 400  # steps of a run that are left out
    steps: int = 5400  # of a run, with these
    runs: int = 200  # side by side, whose windows give the noise of the statistics
    windows: int = 10  # of each of these
    learning: int = 20_000  # steps in which truth and prior are fitted


SMALL, CI = Setting(), Setting(20, 50, 150, 40, 3, 30)


def march(state: Array, forcing: Array, steps: int) -> tuple[Array, Array]:
    """Lorenz-96 by the classical Runge-Kutta method, rows first: last states, and means and deviations."""
    x, force = state.T.copy(), np.ascontiguousarray(forcing.T)
    ring = np.empty((len(x) + 3, x.shape[1]))
    first, total, squares = x, np.zeros_like(x), np.zeros_like(x)

    def change(at: Array) -> Array:
        ring[2:-1], ring[:2], ring[-1] = at, at[-2:], at[0]
        slope = ring[3:] - ring[:-3]
        slope *= ring[1:-2]
        slope -= at
        slope += force
        return slope

    for _ in range(steps):
        a = change(x)
        b = change(x + STEP / 2 * a)
        c = change(x + STEP / 2 * b)
        d = change(x + STEP * c)
        b += c
        x = x + STEP / 6 * (a + 2 * b + d)
        moved = x - first
        total += moved
        squares += moved * moved
    spread = np.sqrt((squares - total**2 / steps) / (steps - 1))
    return x.T.copy(), np.concatenate([first + total / steps, spread]).T


def forced(weights: Tensor, place: Tensor) -> Tensor:
    """The forcing by networks of weights `(rows, 61)` at places `(cells,)`: `(rows, cells)`."""
    slope, shift, out = weights[:, :-1].unflatten(1, (3, HIDDEN)).unbind(1)
    hidden = torch.tanh(place[:, None] * slope[:, None] + shift[:, None])
    return (hidden @ out[..., None])[..., 0] + weights[:, -1:]


def fitted(weights: Tensor, wanted: Callable[[Tensor], Tensor], steps: int, draws: torch.Generator) -> Tensor:
    """Weights fitted to a noisy curve, beginning at others."""
    x = torch.arange(-500, 501, dtype=F64) / 100
    y = wanted(x) + 0.2 * torch.randn(len(x), dtype=F64, generator=draws)
    weights = weights.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([weights], lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (forced(weights[None], x)[0] - y).square().mean().backward()
        optimizer.step()
    return weights.detach()


class Problem:
    """Data and their noise, the prior, and runs.

    Attributes:
        place: of each cell, what the network sees.
        truth: the weights of which the data are.
        prior: the mean of the prior of weights.
        data: statistics, `(2 cells,)`.
        covariance: of the data, `(2 cells, 2 cells)`.
        whiten: the inverse of its symmetric root.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        draws, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        self.place = torch.arange(setting.cells, dtype=F64) * 10 / setting.cells - 5
        begin = torch.zeros(WEIGHTS, dtype=F64)
        for part in (begin[:HIDDEN], begin[2 * HIDDEN : -1]):  # Glorot's
            part.uniform_(-1, 1, generator=draws).mul_((6 / (HIDDEN + 1)) ** 0.5)
        turn = 0.4 * torch.pi
        self.truth = fitted(begin, lambda x: 8 + 6 * torch.sin(turn * x), setting.learning, draws)
        self.prior = fitted(
            self.truth, lambda x: 8.02 + 6.5 * torch.sin(1.02 * turn * x + 0.2), setting.learning, draws
        )
        forcing = self.forcing(self.truth[None].numpy()).repeat(setting.runs, 0)
        state, samples, states = rng.normal(size=forcing.shape), list[Array](), list[Array]()
        state = march(state, forcing, 5 * setting.begin)[0]
        for _ in range(setting.windows):
            state, seen = march(state, forcing, setting.steps - setting.begin)
            samples.append(seen)
            states.append(state)
        self.covariance = WIDER * np.cov(np.vstack(samples).T)
        self._root = np.linalg.cholesky(PERTURBED * np.cov(np.vstack(states).T))
        values, vectors = np.linalg.eigh(self.covariance)
        self.whiten = vectors / np.sqrt(values) @ vectors.T
        self._start = state[0]
        self.data = self._seen(self._start[None], forcing[:1])[0]

    def forcing(self, weights: Array) -> Array:
        """The forcing of each cell by weights, both with rows first."""
        return forced(torch.as_tensor(weights), self.place).numpy()

    def _seen(self, state: Array, forcing: Array) -> Array:
        state = march(state, forcing, self.setting.begin)[0]
        return march(state, forcing, self.setting.steps - self.setting.begin)[1]

    def run(self, forcing: Array, rng: np.random.Generator) -> Array:
        """Statistics of a run by each row of forcing, from a perturbed start: `(rows, 2 cells)`."""
        return self._seen(self._start + rng.normal(size=forcing.shape) @ self._root.T, forcing)

    def missed(self, seen: Array) -> Array:
        """The root mean square by which each row of statistics misses the data, in units of their noise."""
        return np.sqrt(np.square((seen - self.data) @ self.whiten).mean(-1))


def found(
    problem: Problem, weights: Array, rows: int, missed: list[float], rng: np.random.Generator
) -> dict[str, Any]:
    """What a method took and found, what fresh runs miss by its weights, and the forcing's error."""
    forcing, exact = problem.forcing(weights[None]), problem.forcing(problem.truth[None].numpy())
    fresh = float(problem.missed(problem.run(forcing.repeat(FRESH, 0), rng)).mean())
    off = float(np.sqrt(np.square(forcing - exact).mean()))
    rounded = [round(m, 3) for m in missed]
    return {
        "rows": rows,
        "arrived": missed[-1] < 1,
        "missed": rounded,
        "fresh": round(fresh, 3),
        "off": round(off, 3),
    }


def ensemble(problem: Problem, seed: int, members: int, *, by_misfit: bool = False) -> dict[str, Any]:
    """Tikhonov ensemble Kalman inversion, from draws of the prior."""
    rng, prior, size = np.random.default_rng(seed), problem.prior.numpy(), len(problem.data)
    u, time, missed = prior + SPREAD * rng.normal(size=(members, WEIGHTS)), 0.0, list[float]()
    for update in range(UPDATES + 1):
        *_, at_mean = seen = problem.run(problem.forcing(np.vstack([u, u.mean(0)])), rng)
        missed.append(float(problem.missed(at_mean)))
        if missed[-1] < 1 or update == UPDATES:
            break
        seen, step = seen[:-1], 1.0
        if by_misfit:
            misfit = problem.missed(seen) ** 2 * size / 2
            step = max(size / 2 / misfit.mean(), (size / 2 / misfit.var(ddof=1)) ** 0.5)
            step = min(step, 1 - time) if time < 1 else step
            time += step
        noise = np.zeros((size + WEIGHTS, size + WEIGHTS))
        noise[:size, :size] = problem.covariance / step
        noise[size:, size:] = SPREAD**2 / step * np.eye(WEIGHTS)
        wanted = np.hstack([problem.data, prior]) + np.zeros((members, 1))
        wanted[:, :size] += rng.multivariate_normal(np.zeros(size), problem.covariance / step, members)
        both = np.hstack([seen, u])
        du, dy = u - u.mean(0), both - both.mean(0)
        gain = np.linalg.solve(dy.T @ dy / members + noise, dy.T @ du / members)
        u = u + (wanted - both) @ gain
    return found(problem, u.mean(0), (len(missed) - 1) * members, missed, rng)


class Runs(BlackBoxFunction):
    """Statistics by forcing, whose spec says "ring", "grid" or nothing of its "cells", or by "weights"."""

    def __init__(self, problem: Problem, kind: str, rng: np.random.Generator) -> None:
        super().__init__()
        self.problem, self.kind, self.rng, cells = problem, kind, rng, problem.setting.cells
        layout = {"ring": Grid(periodic=True), "grid": Grid()}.get(kind)
        shape = (WEIGHTS,) if kind == "weights" else (1, cells)
        self.inputs = (ArraySpec("x", shape, "float64", layout=layout),)
        self.outputs = (ArraySpec("seen", (2, cells), "float64", layout=layout),)

    def evaluate_rows(self, x: Array) -> Array:
        """A run of each row."""
        forcing = self.problem.forcing(x) if self.kind == "weights" else x[:, 0]
        return self.problem.run(forcing, self.rng).reshape(len(x), 2, -1)


class Arrived(Exception):
    """The last run missed the data by less than one."""


class Forcing(nn.Module):
    """Weights, a parameter, and what they give a box."""

    def __init__(self, problem: Problem, kind: str) -> None:
        super().__init__()
        self.place, self.kind = problem.place, kind
        self.weights = nn.Parameter(problem.prior.clone())

    def of(self, weights: Tensor) -> Tensor:
        """What weights `(rows, 61)` give the box."""
        return weights if self.kind == "weights" else forced(weights, self.place)[:, None]

    def forward(self, rows: Tensor) -> Tensor:
        """The same for each row."""
        return self.of(self.weights.expand(len(rows), WEIGHTS))


def ours(problem: Problem, seed: int, kind: str, draws: int = 0) -> dict[str, Any]:
    """`zo.fit_field` from the prior's mean; with draws, a kernel learns from as many runs first."""
    rng = np.random.default_rng(seed)
    box, network, missed = Runs(problem, kind, rng), Forcing(problem, kind), list[float]()
    data, whiten = torch.as_tensor(problem.data), torch.as_tensor(problem.whiten)
    tangent, last = None, torch.zeros(1, dtype=F64)
    if draws:
        drawn = network.of(problem.prior + SPREAD * torch.as_tensor(rng.normal(size=(draws, WEIGHTS))))
        tangent = zo.tangents.KernelTangent()
        tangent.fit(drawn, box(drawn), box=box)

    def objective(network: nn.Module, rows: Tensor) -> Tensor:
        square = ((box(network(rows)).flatten(1) - data) @ whiten).square().mean(1)
        last.copy_(square.detach().sqrt())
        of_prior = ((network.get_parameter("weights") - problem.prior) / SPREAD).square().sum()
        return square + of_prior / len(data)

    def evaluated(loss: float) -> None:
        missed.append(float(last))
        if missed[-1] < 1:
            raise Arrived

    try:
        zo.fit_field(
            network, objective, boxes=[box], rows=MOST, tangent=tangent, seed=seed, evaluated=evaluated
        )
    except Arrived:
        pass
    return found(problem, network.weights.detach().numpy(), box.ledger.rows_run, missed, rng)


METHODS: dict[str, tuple[str, Callable[[Problem, int], dict[str, Any]]]] = {
    "eki": ("EKI, 80 members, steps of one", partial(ensemble, members=80)),
    "eki-misfit": ("EKI, 80 members, by the misfit", partial(ensemble, members=80, by_misfit=True)),
    "eki-40": ("EKI, 40 members, steps of one", partial(ensemble, members=40)),
    "ring": ("`zo.fit_field`, forcing to statistics on a ring", partial(ours, kind="ring")),
    "grid": ("`zo.fit_field`, the same, a grid", partial(ours, kind="grid")),
    "cells": ("`zo.fit_field`, the same, no layout", partial(ours, kind="cells", draws=DRAWS)),
    "weights": ("`zo.fit_field`, weights to statistics", partial(ours, kind="weights", draws=DRAWS)),
}


def main(words: Sequence[str]) -> None:
    """Measure what is missing; three methods on a small ring, written nowhere, with --size ci."""
    asked = protocol.options("flux_force", __doc__).parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        small = Problem(CI, 0)
        for name in ("eki", "ring", "weights"):
            print(name, METHODS[name][1](small, 0))
        return
    problem = cache(partial(Problem, SMALL))
    results: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["results"] if FILE.exists() else {}
    for number in PROBLEMS:
        for seed in SEEDS:
            for name, (_, method) in METHODS.items():
                key = f"{name}, problem {number}, seed {seed}"
                if key in results:
                    continue
                results[key] = method(problem(number), seed)
                print(key, results[key], flush=True)
            protocol.write("flux_force", words, {"results": results}, FILE)
    atomic.write_bytes(FILE.with_suffix(".md"), table(results).encode())


def table(results: dict[str, Any]) -> str:
    """A line for each method and problem, over its seeds."""
    heads = ("method", "problem", "arrived", "runs, median", "worst", "fresh runs miss", "forcing off")
    lines = []
    for name, (words, _) in METHODS.items():
        for number in PROBLEMS:
            of = [r for key, r in results.items() if key.startswith(f"{name}, problem {number},")]
            if not of:
                continue
            rows = [r["rows"] if r["arrived"] else np.inf for r in of]
            cells = [f"{r:g}" if np.isfinite(r) else "-" for r in (statistics.median(rows), max(rows))]
            means = [f"{statistics.fmean(r[key] for r in of):.2f}" for key in ("fresh", "off")]
            arrived = f"{sum(r['arrived'] for r in of)} of {len(of)}"
            lines.append((words, str(PROBLEMS.index(number) + 1), arrived, *cells, *means))
    return protocol.markdown(heads, lines) + "\n"
