"""Programs that call a network from inside of their loop, each with what makes its derivative hard to learn.

    python -m benchmarks closed_loop --size ci       two steps of one program; written nowhere
    python -m benchmarks closed_loop --size small    the table

| program | what is hard |
| --- | --- |
| no lag | nothing: the same system as in the next five lines |
| lag hidden | the action goes through a lag of ten steps, which the program keeps and does not send |
| lag sent | the same, and all state is sent |
| delay | the action acts five steps later, and nobody is told |
| preview | a reference for two steps is sent, and what comes into it is no function of what was sent |
| dead band | small actions do nothing |
| cart-pole | the pole falls |
| stages | a Runge-Kutta scheme asks in both of its stages, and hands on what the first was answered |
| columns | one network for 20 alike columns of 12 levels, which exchange a little with their neighbours |

Behind a comma is what the call declares of it.

Lags and delays are of Lorenz's system of 1996 (8 cells, Runge-Kutta, dt .01), 16 calls a run; the previewed
reference is of a mass behind a PID; stages are of Burgers' equation. Batches of 8, Adam. The oracle is
autograd through the same program in PyTorch: first order is trained with it at three rates, and the table
has the error on cases that were not trained on, over that of first order, both at the rate of the three that
is best for first order. A cosine is that
of a step's gradient with the exact one, at the weights as they are. "Late" is first order that does nothing
for as many steps as the training had no gradient: what the wait costs by itself.

"Replays" is the loop that the tutorial ends with, `zo.Population` around Adam at its default rate: the same
rows, and no rate is chosen for it. It is over first order at a rate that goes on beyond the three until none
is better on the cases that judge, in its favour. First order replays nothing here. What was measured is not
measured again.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.closed_loop.burgers import burgers_program
from benchmarks.closed_loop.columns import columns_program
from benchmarks.closed_loop.lorenz import lorenz_program
from benchmarks.closed_loop.mechanics import cart_pole_program, dead_band_program, preview_program
from benchmarks.closed_loop.program import Program

BATCH, RATES, LOOK = 8, (3e-3, 6e-3, 1.2e-2), (2, 5, 10, 25)
SEEDS = (0, 1, 2)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "no lag": lambda: lorenz_program(lag=1),
    "lag hidden": lorenz_program,
    "lag hidden, memory=1": lambda: lorenz_program(memory=1),
    "lag of 3 hidden": lambda: lorenz_program(lag=3),
    "lag of 30 hidden": lambda: lorenz_program(lag=30),
    "lag hidden, half acts at once": lambda: lorenz_program(direct=0.5),
    "lag sent": lambda: lorenz_program(sent=True),
    "delay": lambda: lorenz_program(delay=5),
    "preview": preview_program,
    "dead band": dead_band_program,
    "cart-pole": cart_pole_program,
    "stages": burgers_program,
    "columns": columns_program,
    "columns, same=0": lambda: columns_program(same=0),
}


def trained(
    program: Program, seed: int, rate: float, *, exact: bool, steps: int, idle: int = 0
) -> dict[str, Any]:
    """Train once, and return error, rows, cosines, steps without a gradient and warnings.

    In its first `idle` steps first order does nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = program.network()
    optimizer, generator = torch.optim.Adam(network.parameters(), rate), np.random.default_rng(seed)
    weights = list(network.parameters())
    gradient = None
    if not exact:
        gradient = zo.TangentGradient(network, program.objective, boxes=[program.host], seed=seed)
    cosines: dict[str, tuple[float, float]] = {}
    without = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for step in range(steps):
            batch = program.batch(generator, BATCH, False)
            optimizer.zero_grad()
            if gradient is None:
                if step >= idle:
                    program.twin(network, batch).mean().backward()
            else:
                gradient.backward(batch)
                if weights[0].grad is None:
                    without += 1
                else:
                    cosines[str(step)] = _beside(weights, program.twin(network, batch).mean())
            optimizer.step()
    return {
        "error": error_of(program, network),
        "rows": 0 if gradient is None else gradient.counts.rows,
        "without": without,
        "cosines": cosines,
        "warnings": [str(one.message) for one in caught],
    }


def replayed(name: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """The same rows in a population at the optimiser's default rate: error, and rows."""
    program = PROGRAMS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = program.network()
    generator, steps = np.random.default_rng(seed), steps or program.steps
    gradient = zo.TangentGradient(network, program.objective, boxes=[program.host], seed=seed)
    population = zo.Population(gradient, torch.optim.Adam(network.parameters()), steps=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for _ in range(steps):
            population.step(program.batch(generator, BATCH, False))
    program.host.close()
    return {
        "error": error_of(program, network),
        "rows": gradient.counts.rows,
        "replays": gradient.counts.replays,
        "warnings": [str(one.message) for one in caught],
        "commit": protocol.commit(),
    }


def error_of(program: Program, network: nn.Module) -> float:
    """The mean loss of cases that were not trained on."""
    with torch.no_grad():
        return float(program.twin(network, program.batch(np.random.default_rng(999), 64, True)).mean())


def _beside(weights: Sequence[Tensor], exact: Tensor) -> tuple[float, float]:
    """Cosine with the exact gradient, and the length over its."""
    true = torch.cat([part.flatten() for part in torch.autograd.grad(exact, list(weights))])
    mine = torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights])
    return float(mine @ true / mine.norm() / true.norm()), float(mine.norm() / true.norm())


def compared(name: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """A program by both, at the one of three rates that is best for first order."""
    program = PROGRAMS[name]()
    steps = steps or program.steps
    first = {rate: trained(program, seed, rate, exact=True, steps=steps)["error"] for rate in RATES}
    rate = min(first, key=first.__getitem__)
    learned = trained(program, seed, rate, exact=False, steps=steps)
    program.host.close()
    over = learned["error"] / first[rate]
    run = {"rate": rate, "first": first[rate], "over": over, **learned, "commit": protocol.commit()}
    return run | {"late": late(program, seed, run, steps)}


def late(program: Program, seed: int, run: dict[str, Any], steps: int) -> float:
    """The error of first order that waits as long as a training did, over that of first order."""
    waited = trained(program, seed, run["rate"], exact=True, steps=steps, idle=run["without"])
    return float(waited["error"] / run["first"])


def tuned(name: str, seed: int, run: dict[str, Any], steps: int | None = None) -> dict[str, Any]:
    """First order's best rate and its error, where the best of the three is at their edge: beyond it too."""
    program = PROGRAMS[name]()
    steps = steps or program.steps

    def error_at(rate: float) -> float:
        return trained(program, seed, rate, exact=True, steps=steps)["error"]

    rate, error = beyond(error_at, run["rate"], run["first"])
    program.host.close()
    return {"rate": rate, "error": error, "commit": protocol.commit()}


def beyond(error_at: Callable[[float], float], rate: float, error: float) -> tuple[float, float]:
    """The rate that is doubled, or halved, from an edge of `RATES` on as long as the error falls."""
    for factor, edge in ((2.0, RATES[-1]), (0.5, RATES[0])):
        while rate == edge:
            edge = factor * rate
            if (further := error_at(edge)) < error:  # not if it is NaN
                rate, error = edge, further
    return rate, error


def over_tuned(run: dict[str, Any]) -> float:
    """The error of a population over that of first order at its best rate; NaN where one was not run."""
    return run.get("replayed", {}).get("error", math.nan) / run.get("tuned", {}).get("error", math.nan)


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("closed_loop", __doc__)
    parser.add_argument(
        "--programs", nargs="*", choices=PROGRAMS, default=list(PROGRAMS), help="of these alone"
    )
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        run = compared("lag hidden", 0, 2)
        run |= {"tuned": tuned("lag hidden", 0, run, 2), "replayed": replayed("lag hidden", 0, 2)}
        print(line("lag hidden", [run]))
        return
    path = protocol.path("closed_loop", asked.size)
    results: dict[str, list[dict[str, Any]]] = (
        json.loads(path.read_text())["programs"] if path.exists() else {}
    )
    every: list[tuple[int, str]] = [(count, name) for count in range(len(SEEDS)) for name in asked.programs]
    for what, (count, name) in product(("tuned", "replayed"), every):
        seed = SEEDS[count]
        runs = results.setdefault(name, [])
        if len(runs) == count:
            runs.append(compared(name, seed))
        if what not in runs[count]:
            run = runs[count]
            run[what] = tuned(name, seed, run) if what == "tuned" else replayed(name, seed)
            protocol.write("closed_loop", words, {"seeds": SEEDS, "programs": results}, path)
            print(line(name, runs), flush=True)
    print(HEAD + "\n".join(line(name, results[name]) for name in asked.programs))


HEAD = (
    "| program | error over first order's | late | replays | steps without a gradient | "
    f"cosine, length at steps {', '.join(map(str, LOOK))} | warnings |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
)


def line(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """Return a line of the table."""
    each = [
        ", ".join(str(part) for part in column)
        for column in zip(
            *(
                (
                    f"{run['over']:.2f}",
                    f"{run.get('late', math.nan):.2f}",
                    f"{over_tuned(run):.2f}",
                    run["without"],
                    " ".join(
                        "{:.2f}/{:.2f}".format(*run["cosines"][str(s)]) if str(s) in run["cosines"] else "-"
                        for s in LOOK
                    ),
                    len(run["warnings"]),
                )
                for run in runs
            ),
            strict=True,
        )
    ]
    return f"| {name} | {' | '.join(each)} |"
