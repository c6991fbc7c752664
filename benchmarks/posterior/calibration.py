"""`python -m benchmarks calibration`: whether `zo.sample` draws from the posterior, by ranks.

    python -m benchmarks calibration --size small     100 repetitions of each problem

Unknowns are drawn from the prior and data from them. `zo.sample` draws from the posterior of these data: the
rank of what the data were made of, among draws thinned to be near independent, is uniform if the draws are
right (Talts et al., 2018). The potential's rank is too, and finds what the unknowns' own miss (Modrák et al.,
2023).
A chi-square test over ten bins must not refuse that at 1 %. Results go into
`benchmarks/results/posterior/calibration.json` as they come; what is there is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

import zo
from benchmarks import protocol
from blackbox import ArraySpec, BlackBoxFunction

FILE = protocol.RESULTS / "posterior" / "calibration.json"
F64 = torch.float64
REPETITIONS, BINS, REFUSED = 100, 10, 0.01
ROWS, KEPT = 500, 4  # of the box in each repetition, and draws of each chain that are ranked
START = 20  # draws of the prior to begin from
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [-0.3, 1.2, 0.4], [0.7, 0.7, -0.8], [0.2, 0.0, 0.5]], dtype=F64)
TIMES = 0.6 * torch.arange(1, 5, dtype=F64)


class Linear(BlackBoxFunction):
    """Four sums of three unknowns."""

    inputs = (ArraySpec("x", (3,), dtype="float64"),)
    outputs = (ArraySpec("y", (4,), dtype="float64"),)

    def evaluate_rows(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """A x."""
        return x @ MATRIX.numpy().T


class Oscillator(BlackBoxFunction):
    """Displacements of x'' + c x' + k x = 0 at four times, from x = 1 at rest, by k and c."""

    inputs = (ArraySpec("x", (2,), dtype="float64"),)
    outputs = (ArraySpec("y", (len(TIMES),), dtype="float64"),)

    def __init__(self) -> None:
        super().__init__(failures="keep")  # far out its hyperbolic functions are too large for floating point

    def evaluate_rows(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The closed form, beyond critical damping too."""
        stiffness, damping = x[:, :1], x[:, 1:]
        turn = np.sqrt(stiffness - damping**2 / 4 + 0j)
        times = TIMES.numpy()
        with np.errstate(all="ignore"):
            wave = np.cos(turn * times) + damping / (2 * turn) * np.sin(turn * times)
            return (np.exp(-damping * times / 2) * wave).real


class Problem(NamedTuple):
    """Unknowns with a prior, and a box that is measured with normal noise.

    Attributes:
        box: makes it.
        draw: rows of the prior, `(rows, size)`, from their number and a generator.
        energy: minus the logarithm of the prior's density, `(rows, size)` to `(rows,)`, but for a constant.
        noise: standard deviation of each datum.
        bounds: as for `zo.sample`.
    """

    box: Callable[[], BlackBoxFunction]
    draw: Callable[[int, torch.Generator], Tensor]
    energy: Callable[[Tensor], Tensor]
    noise: float
    bounds: tuple[Any, Any] | None

    def potential(self, data: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Minus the logarithm of the posterior's density by unknowns and the box's answers."""
        return lambda x, y: ((y - data) / self.noise).square().sum(1) / 2 + self.energy(x)


SHAPES, SCALES = torch.tensor([4.0, 2.0], dtype=F64), torch.tensor([1.0, 0.25], dtype=F64)


def _normal(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, 3, dtype=F64, generator=generator)


def _gamma(rows: int, generator: torch.Generator) -> Tensor:
    """Sums of exponentials: the shapes are whole numbers."""
    waits = -torch.rand(rows, 2, 4, dtype=F64, generator=generator).log()
    waits[:, 1, 2:] = 0
    return waits.sum(2) * SCALES


PROBLEMS = {
    "linear": Problem(Linear, _normal, lambda x: x.square().sum(1) / 2, 0.5, None),
    "oscillator": Problem(
        Oscillator, _gamma, lambda x: (x / SCALES - (SHAPES - 1) * x.log()).sum(1), 0.1, (0.0, torch.inf)
    ),
}

Sampler = Callable[[Problem, Tensor, int], NDArray[np.float64]]
"""Draws `(chains, draws, size)` of a problem's posterior, from its data and a seed."""


def sampled(problem: Problem, data: Tensor, seed: int) -> NDArray[np.float64]:
    """Draws of `zo.sample`, which begins from draws of the prior."""
    start = problem.draw(START, torch.Generator().manual_seed(seed + 10**6))
    found = zo.sample(
        problem.potential(data), problem.box(), start, rows=ROWS, seed=seed, bounds=problem.bounds
    )
    return found.posterior["x"].values


def ranks(problem: Problem, seed: int, sampler: Sampler = sampled) -> list[float]:
    """Ranks of one repetition, within 0 and 1: of each unknown, and of the potential.

    Args:
        problem: from which truth and data are drawn.
        seed: of the repetition.
        sampler: what is judged.
    """
    generator, box = torch.Generator().manual_seed(seed), problem.box()
    truth = problem.draw(1, generator)
    answer = box(truth)
    data = (answer + problem.noise * torch.randn(answer.shape, dtype=F64, generator=generator))[0]
    x = sampler(problem, data, seed)
    every = x.shape[1] // KEPT
    thin = torch.as_tensor(x[:, every - 1 :: every][:, :KEPT].reshape(-1, x.shape[2]))
    both = torch.cat([truth, thin])
    quantities = torch.cat([both, problem.potential(data)(both, box(both))[:, None]], 1)
    below = (quantities[1:] < quantities[:1]).sum(0)
    return ((below + torch.rand(len(below), dtype=F64, generator=generator)) / len(both)).tolist()


def uniformity(found: Sequence[Sequence[float]]) -> list[float]:
    """The p-value of each column's uniformity, by a chi-square test over ten bins."""
    counts = [np.histogram(column, BINS, (0, 1))[0] for column in np.asarray(found).T]
    return [float(chisquare(count).pvalue) for count in counts]


def main(words: Sequence[str]) -> None:
    """Measure what is missing; one repetition of each, written nowhere, with --size ci."""
    asked = protocol.options("calibration", __doc__).parse_args(words)
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text(encoding="utf-8"))["results"] if FILE.exists() else {}
    kept = asked.size == "small"
    results: dict[str, Any] = known if kept else {}
    for count in range(20, REPETITIONS + 1, 20) if kept else (1,):
        for name, problem in PROBLEMS.items():
            found = results.setdefault(name, {"ranks": []})
            found["ranks"] += [ranks(problem, seed) for seed in range(len(found["ranks"]), count)]
            found["repetitions"] = len(found["ranks"])
            found["p"] = uniformity(found["ranks"])
            found["refused"] = [p < REFUSED for p in found["p"]]
            print(name, found["repetitions"], "repetitions, p", np.round(found["p"], 3), flush=True)
            if kept:
                rounded = {
                    key: one | {"ranks": [[round(rank, 4) for rank in row] for row in one["ranks"]]}
                    for key, one in results.items()
                }
                protocol.write("calibration", words, {"results": rounded}, FILE)
