"""A closure that is trained inside a solver: learned tangents beside first order, with dither and without.

    python -m benchmarks closure --size ci       two steps; written nowhere
    python -m benchmarks closure --size small    the table; goes on where it was stopped
    python -m benchmarks closure --size small --uncorrected    the solver alone, with a term of zero

The truth is the two-scale system of Lorenz (1996): 8 slow cells, each coupled to 32 fast ones (F = 20, h = 1,
b = c = 10). The solver steps the slow cells alone (Runge-Kutta, dt .01) and asks a network for a term in
each cell, in every step; the box is one step, (state, term) to state. The loss is the square of the distance
to the truth over its variance, the mean over 16 steps from a state of the truth. The term is a function of
the state: the usual case of a parametrisation that is learned online (Frezat et al. 2022), and one in which
values do not show the derivative. Errors are the same over 100 free steps on trajectories that were not
trained on.

Adam with a cosine and gradients of length one at most, for all methods; every setting but the rate is the
library's own. The rate is doubled from the higher of two on as long as the mean error over seeds falls, for
each method; the best of them is chosen by the errors that are shown, for all methods alike. Rows are 16 for
each row of a batch. First order goes through a twin in PyTorch.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import zo
from benchmarks import protocol
from blackbox import ArraySpec, BlackBoxFunction
from zo.objective import Objective

CELLS, FAST, CALLS, FREE, SPACING = 8, 32, 16, 100, 260
STEPS, BATCH, RATES, REPLAYS = 300, 8, (1e-3, 3e-3), 4
SEEDS = (20, 21, 22)  # nothing was chosen on them
LINES = {
    "first order, batches of 8": ("first order", 8, 1, 0),
    "learned tangents": ("tangents", 8, 1, 0),
    "learned tangents, excite=0": ("excite=0", 8, 1, 0),
    "first order, batches of 1": ("first order", 1, 1, 0),
    "first order, batches of 1, a fifth of the rows": ("first order", 1, 5, 0),
    "learned tangents, batches of 1, a fifth, 4 replays": ("tangents", 1, 5, REPLAYS),
}  # method, batch, the part of the rows, replays


class Solver(BlackBoxFunction):
    """A step of the slow cells with a term in each."""

    arrays = "torch"
    inputs = ArraySpec("state", (CELLS,)), ArraySpec("term", (CELLS,))
    outputs = (ArraySpec("state", (CELLS,)),)

    def evaluate_rows(self, state: Tensor, term: Tensor) -> Tensor:
        """All rows."""
        return self.advance(state, term)

    @staticmethod
    def advance(state: Tensor, term: Tensor, dt: float = 0.01) -> Tensor:
        """What a call does, differentiable by both."""

        def rate(x: Tensor) -> Tensor:
            return -x.roll(1, -1) * (x.roll(2, -1) - x.roll(-1, -1)) - x + 20.0 + term

        a = rate(state)
        b = rate(state + dt / 2 * a)
        c = rate(state + dt / 2 * b)
        return state + dt / 6 * (a + 2 * b + 2 * c + rate(state + dt * c))


class Closure(nn.Module):
    """The term of each cell."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(CELLS, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, CELLS)
        self.layers = nn.Sequential(*layers)

    def forward(self, state: Tensor) -> Tensor:
        """Of `(rows, cells)`."""
        return 5 * self.layers(state / 10)


class NoClosure(nn.Module):
    """A term of zero in each cell."""

    def forward(self, state: Tensor) -> Tensor:
        """Of `(rows, cells)`."""
        return torch.zeros_like(state)


@cache
def truth(kind: str) -> Tensor:
    """Trajectories of the slow cells, every hundredth of a unit of time: `(runs, 260, cells)`."""
    runs, seed = {"training": (48, 0), "test": (16, 2)}[kind]
    generator = np.random.default_rng(seed)
    both = [20 * (0.5 + 0.2 * generator.standard_normal((runs, CELLS)))]
    both.append(0.1 * generator.standard_normal((runs, CELLS * FAST)))
    kept = []
    for step in range(5000 + SPACING * 10):
        if step >= 5000 and step % 10 == 0:
            kept.append(both[0].copy())
        both = runge_kutta(both, 0.001)
    return torch.tensor(np.stack(kept, axis=1), dtype=torch.float32)


def runge_kutta(both: list[NDArray[Any]], dt: float) -> list[NDArray[Any]]:
    """A step of slow and fast cells, `(runs, cells)` and `(runs, cells * FAST)`."""

    def moved(by: float, rates: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return [x + by * rate for x, rate in zip(both, rates, strict=True)]

    a = _rates(*both)
    b = _rates(*moved(dt / 2, a))
    c = _rates(*moved(dt / 2, b))
    d = _rates(*moved(dt, c))
    return moved(dt / 6, [k + 2 * m + 2 * n + o for k, m, n, o in zip(a, b, c, d, strict=True)])


def _rates(slow: NDArray[Any], fast: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of both scales, with h = 1 and b = c = 10."""
    near = np.roll(slow, 2, -1) - np.roll(slow, -1, -1)
    coupled = fast.reshape(*slow.shape, FAST).sum(-1)
    further = np.roll(fast, -2, -1) - np.roll(fast, 1, -1)
    return (
        -np.roll(slow, 1, -1) * near - slow + 20.0 - coupled,
        -100.0 * np.roll(fast, -1, -1) * further - 10.0 * fast + np.repeat(slow, FAST, -1),
    )


def objective_of(step: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The loss of each row, through the box or its twin."""
    spread = truth("training").std()

    def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        state, wanted = batch
        total = torch.zeros(len(state))
        for call in range(wanted.shape[1]):
            state = step(state, network(state))
            total = total + ((state - wanted[:, call]) / spread).square().mean(dim=1)
        return total / wanted.shape[1]

    return objective


def batch_of(rows: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Starts `(rows, cells)` and what follows them, `(rows, calls, cells)`."""
    generator, flows = np.random.default_rng([seed, step]), truth("training")
    runs = torch.from_numpy(generator.integers(0, len(flows), rows))
    places = torch.from_numpy(generator.integers(0, SPACING - CALLS - 1, rows))
    after = flows[runs[:, None], places[:, None] + torch.arange(1, CALLS + 1)]
    return flows[runs, places], after


def error(network: nn.Module) -> float:
    """The loss over 100 free steps on trajectories that were not trained on."""
    flows = truth("test")
    starts = torch.cat([flows[:, 0], flows[:, 130]])
    after = torch.cat([flows[:, 1 : FREE + 1], flows[:, 131 : 131 + FREE]])
    with torch.no_grad():
        return float(objective_of(Solver.advance)(network, (starts, after)).mean())


def trained(
    method: str, batch: int, part: int, replays: int, rate: float, seed: int, steps: int = STEPS
) -> dict[str, Any]:
    """Error, rows of the box over those of the steps, and the number of warnings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Closure()
    box, steps = Solver(), steps * BATCH // batch // part
    gradient = None
    if method != "first order":
        excite = 0.0 if method == "excite=0" else None
        limits = zo.tangents.Limits(replays=replays or None, excite=excite)
        gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=seed, limits=limits)
    exact = objective_of(Solver.advance)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    most = steps * (1 + replays)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: 0.01 + 0.99 * (1 + math.cos(math.pi * done / most)) / 2
    )

    def moved() -> None:
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for step in range(steps):
            drawn = batch_of(batch, step, seed)
            if gradient is None:
                exact(network, drawn).mean().backward()
            else:
                gradient.backward(drawn)
            moved()
            if gradient is not None and replays:
                for _ in range(gradient.replays()):
                    gradient.replay()
                    moved()
    rows = 0 if gradient is None else gradient.counts.rows
    return {
        "error": error(network),
        "rows": max(1.0, rows / (steps * batch * CALLS)),
        "warnings": len(caught),
        "commit": protocol.commit(),
    }


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("closure", __doc__)
    parser.add_argument("--uncorrected", action="store_true", help="the solver alone, and nothing else")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES), help="of these alone")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.uncorrected:
        alone = error(NoClosure())
        print(f"no closure: {alone:.3f}")
        if asked.size != "ci":
            path = protocol.path("closure_uncorrected", asked.size)
            protocol.write("closure", words, {"error": alone}, path)
        return
    if asked.size == "ci":
        print(trained("tangents", BATCH, 1, 0, RATES[1], 0, 2))
        return
    path = protocol.path("closure", asked.size)
    results: dict[str, ByRate] = json.loads(path.read_text())["lines"] if path.exists() else {}
    for name in asked.lines:
        by_rate = results.setdefault(name, {})
        while (rate := next_rate(by_rate)) is not None:
            by_rate[f"{rate:g}"] = [trained(*LINES[name], rate, seed) for seed in SEEDS]
            protocol.write("closure", words, {"seeds": SEEDS, "lines": results}, path)
            print(name, rate, [run["error"] for run in by_rate[f"{rate:g}"]], flush=True)
    print(table(results))


ByRate = dict[str, list[dict[str, Any]]]


def next_rate(by_rate: ByRate) -> float | None:
    """The rate to try next: one of `RATES`, or twice the highest where that is the best; None at the end."""
    for rate in RATES:
        if f"{rate:g}" not in by_rate:
            return rate
    errors = {float(rate): fmean(run["error"] for run in runs) for rate, runs in by_rate.items()}
    known = {rate: error for rate, error in errors.items() if math.isfinite(error)}
    highest = max(errors)
    return 2 * highest if known and min(known, key=known.__getitem__) == highest else None


def table(results: dict[str, ByRate]) -> str:
    """In Markdown."""
    lines = [
        "Error over 100 free steps, three seeds, by rate; rows of the box over those of the steps; warnings."
        "\n\n| | errors | rows | warnings |\n| --- | --- | --- | --- |\n"
    ]
    for name, by_rate in results.items():
        runs = [run for each in by_rate.values() for run in each]
        several = {rate: ", ".join(f"{run['error']:.3f}" for run in each) for rate, each in by_rate.items()}
        errors = "; ".join(f"{rate}: {each}" for rate, each in several.items())
        rows, warned = (max(run[of] for run in runs) for of in ("rows", "warnings"))
        lines.append(f"| {name} | {errors} | {rows:.2f} | {warned} |\n")
    return "".join(lines)
