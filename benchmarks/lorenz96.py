"""Ways to train a closure of Lorenz-96: offline, through the adjoint, an emulator, tangents, or by values.

    python -m benchmarks lorenz96 --size ci       two steps of each; written nowhere
    python -m benchmarks lorenz96 --size small    the table; goes on where it was stopped

The problem is that of `benchmarks closure` (a step of the solver in torch, which has the adjoint). What is
compared is what people do about a solver without one:

- *offline*: the network is fitted to what is missing in each true step, and never runs in the solver.
- *emulator* (Frezat et al. 2024): a network is fitted to the solver's steps and stands in its place, while
  the closure is trained; the solver runs no more. As many rows of it are spent as the others spend: true
  states, with terms as wide as the true ones, drawn at random, so that every derivative is identified.
- *tangents*: this project's, by default; and with replays, at a fifth of the rows.
- *values alone*, of the loss: sparse CGE for the network at ten times the rows; for a cubic in each cell, of
  four weights (Wilks 2005), CMA-ES and ensemble Kalman inversion at equal rows.

Errors are those of 100 free steps from 32 states that nothing was trained on, over the variance; climate is
that of 16 runs over 62.5 units of time each, a thousand together, beside the same of the full system: the
Hellinger distance of histograms of a cell, and the spectrum in time, whose error is that of its logarithm.
A run that leaves |x| < 100 has blown up. One row is a step of the solver in a row of the batch.

Adam with a cosine, gradients of length one at most. Rates are 3e-3 for all; batch and steps are in the table.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from runpy import run_path
from statistics import fmean
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import zo
from benchmarks import closure, protocol
from benchmarks.closure import BATCH, CALLS, CELLS, FREE, Closure, Solver, batch_of, objective_of, truth
from blackbox.adapters import Call, Hosted
from blackbox.spec import ArraySpec
from tasks.folder import atomic
from tasks.folder.machine import versions

SEEDS = (30, 31, 32)  # nothing was chosen on them
RATE, STEPS = 3e-3, 300  # of batches of eight rows
ROWS = STEPS * BATCH * CALLS  # of the solver
LONG, EVERY, RUNS = 6250, 5, 16  # steps of a long run, the steps of which one is kept, and runs
BLOWN_UP = 100.0
TOP = 2.0  # a unit of time, of the frequencies whose power is compared
Step = Callable[[Tensor, Tensor], Tensor]


class Cubic(nn.Module):
    """The same cubic of each cell: four weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(4))

    def forward(self, state: Tensor) -> Tensor:
        """Of `(rows, cells)`."""
        scaled = state / 10
        powers = torch.stack([torch.ones_like(scaled), scaled, scaled**2, scaled**3])
        return torch.einsum("p,p...->...", 5 * self.weights, powers)


class Emulator(nn.Module):
    """The solver's step as a network: the state, and what it changes by."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(2 * CELLS, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()
        self.layers = nn.Sequential(*layers, nn.Linear(128, CELLS))

    def forward(self, state: Tensor, term: Tensor) -> Tensor:
        """The next state."""
        return state + self.layers(torch.cat([state / 10, term / 10], dim=1))


def network_of(seed: int, kind: type[nn.Module] = Closure) -> nn.Module:
    """The network of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


class Descent:
    """Adam on a cosine, over as many updates as there will be."""

    def __init__(self, network: nn.Module, updates: int) -> None:
        self._network = network
        self._optimizer = torch.optim.Adam(network.parameters(), RATE)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda done: 0.01 + 0.99 * (1 + math.cos(math.pi * done / updates)) / 2
        )

    def step(self) -> None:
        """One update by what is in `.grad`."""
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()


def nothing(seed: int, part: float) -> tuple[nn.Module, float]:
    """No closure at all."""
    return Cubic(), 0.0


def by_adjoint(
    seed: int,
    part: float,
    batch: int = BATCH,
    share: int = 1,
    kind: type[nn.Module] = Closure,
    step: Step = Solver.advance,
) -> tuple[nn.Module, float]:
    """First order, through the twin, or through what stands in its place."""
    network, steps = network_of(seed, kind), max(1, int(part * STEPS * BATCH / batch / share))
    descent, objective = Descent(network, steps), objective_of(step)
    for number in range(steps):
        objective(network, batch_of(batch, number, seed)).mean().backward()
        descent.step()
    return network, float(steps * batch * CALLS)


def by_repeated_rows(
    seed: int, part: float, share: int = 5, repeats: int = 4, third: bool = True
) -> tuple[nn.Module, float]:
    """What replays would be with the exact derivative: rows drawn as replays draw them."""
    network, steps = network_of(seed), max(1, int(part * STEPS * BATCH / share))
    descent, objective = Descent(network, steps * (1 + repeats)), objective_of(Solver.advance)
    kept, generator = list[tuple[Tensor, Tensor]](), torch.Generator().manual_seed(seed)
    for number in range(steps):
        kept.append(batch_of(1, number, seed))
        young = kept[-max(20, len(kept) // 3) :] if third else kept
        for repeat in range(1 + repeats):
            drawn = torch.randperm(len(young), generator=generator)[:4].tolist() if repeat else [-1]
            rows = [torch.cat(parts) for parts in zip(*(young[place] for place in drawn), strict=True)]
            objective(network, (rows[0], rows[1])).mean().backward()
            descent.step()
    return network, float(steps * CALLS)


def missing(states: Tensor, after: Tensor) -> Tensor:
    """The term that is missing in true steps."""
    with torch.no_grad():
        return (after - Solver.advance(states, torch.zeros_like(states))) / 0.01


def offline(seed: int, part: float, kind: type[nn.Module] = Closure) -> tuple[nn.Module, float]:
    """Fitted to what is missing."""
    network, steps = network_of(seed, kind), max(1, int(part * 2 * STEPS * BATCH))
    descent, generator = Descent(network, steps), np.random.default_rng([seed, 1])
    flows = truth("training")
    before, after = flows[:, :-1].reshape(-1, CELLS), flows[:, 1:].reshape(-1, CELLS)
    wanted = missing(before, after)
    for _ in range(steps):
        rows = torch.from_numpy(generator.integers(0, len(before), BATCH * CALLS))
        (network(before[rows]) - wanted[rows]).square().mean().backward()
        descent.step()
    return network, 0.0


@cache
def emulator(seed: int, part: float) -> tuple[Emulator, float]:
    """Fitted to as many steps of the solver as the others spend on a training."""
    model, generator = network_of(seed, Emulator), np.random.default_rng([seed, 2])
    assert isinstance(model, Emulator)
    flows, rows = truth("training").reshape(-1, CELLS), max(256, int(part * ROWS))
    wide = float(missing(truth("training")[:, :-1], truth("training")[:, 1:]).std())
    states = flows[torch.from_numpy(generator.integers(0, len(flows), rows))]
    # a line in x as people had, and as much again at random
    terms = -0.2 - 0.5 * states + wide * torch.from_numpy(generator.standard_normal((rows, CELLS))).float()
    with torch.no_grad():
        after = Solver.advance(states, terms)
    scale, passes = (after - states).std(), 40 if part == 1 else 1
    descent = Descent(model, passes * (rows // 256))
    for _ in range(passes):
        order = torch.from_numpy(generator.permutation(rows))
        for chosen in order[: rows // 256 * 256].view(-1, 256):
            off = (model(states[chosen], terms[chosen]) - after[chosen]) / scale
            off.square().mean().backward()
            descent.step()
    return model.requires_grad_(False), float(rows)


def by_emulator(seed: int, part: float, batch: int = BATCH) -> tuple[nn.Module, float]:
    """Trained through an emulator, which costs no further row."""
    model, rows = emulator(seed, part)
    return by_adjoint(seed, part, batch, step=model)[0], rows


def by_tangents(
    seed: int, part: float, batch: int = BATCH, share: int = 1, replays: int = 0, max_age: int | None = None
) -> tuple[nn.Module, float]:
    """Learned tangents; all settings but those of replays are the library's own."""
    network, box, steps = network_of(seed), Solver(), max(1, int(part * STEPS * BATCH / batch / share))
    limits = zo.tangents.Limits(replays=replays or None, max_age=max_age)
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=seed, limits=limits)
    descent = Descent(network, steps * (1 + replays))
    for number in range(steps):
        gradient.backward(batch_of(batch, number, seed))
        descent.step()
        for _ in range(gradient.replays() if replays else 0):
            gradient.replay()
            descent.step()
    return network, float(gradient.counts.rows)


def by_sparse_cge(seed: int, part: float, times: int = 10) -> tuple[nn.Module, float]:
    """Coordinates of a thirtieth of the weights, others in each step, at so many times the rows."""
    network, queries = network_of(seed), 174
    steps = max(1, int(part * times * STEPS / (1 + queries)))
    estimator = zo.CGE(mu=1e-2, sparsity=zo.RandomCoordinates(queries))
    gradient = zo.LossGradient(network, objective_of(Solver()), estimator, seed=seed, evaluator="stacked")
    descent = Descent(network, steps)
    for number in range(steps):
        gradient.backward(batch_of(BATCH, number, seed))
        descent.step()
    return network, float(steps * (1 + queries) * BATCH * CALLS)


def by_kalman(seed: int, part: float, members: int = 10) -> tuple[nn.Module, float]:
    """Ensemble Kalman inversion of the cubic's weights, a batch a step.

    What is observed are all states of the batch, with errors of a tenth of the spread.
    """
    generator, network = np.random.default_rng([seed, 3]), Cubic()
    ensemble = 0.5 * generator.standard_normal((members, 4))
    steps, noise = max(1, int(part * STEPS / members)), 0.1 * float(truth("training").std())
    for number in range(steps):
        starts, wanted = batch_of(BATCH, number, seed)
        runs = []
        with torch.no_grad():
            for weights in ensemble:
                network.weights.copy_(torch.from_numpy(weights))
                state, states = starts, []
                for _ in range(CALLS):
                    state = Solver.advance(state, network(state))
                    states.append(state)
                runs.append(torch.stack(states, dim=1).flatten().double().numpy())
        seen, spread = np.stack(runs), ensemble - ensemble.mean(axis=0)
        away = seen - seen.mean(axis=0)
        # the gain in the space of the ensemble, whose members are few and whose numbers are many
        inner = np.linalg.inv(np.eye(members) + away @ away.T / noise**2 / (members - 1))
        observed = wanted.flatten().double().numpy()
        observed = observed + noise * generator.standard_normal(seen.shape)
        weights_of = (observed - seen) @ away.T / noise**2 / (members - 1) @ inner
        ensemble = ensemble + weights_of @ spread
    with torch.no_grad():
        network.weights.copy_(torch.from_numpy(ensemble.mean(axis=0)))
    return network, float(steps * members * BATCH * CALLS)


LINES: dict[str, Callable[[int, float], tuple[nn.Module, float]]] = {
    "no closure": nothing,
    "offline": offline,
    "adjoint, batches of 8": by_adjoint,
    "tangents, batches of 8": by_tangents,
    "adjoint, batches of 1": partial(by_adjoint, batch=1),
    "tangents, batches of 1": partial(by_tangents, batch=1),
    "tangents, batches of 1, a fifth, 4 replays of all rows": partial(
        by_tangents, batch=1, share=5, replays=4, max_age=STEPS * BATCH
    ),
    "cubic: ensemble Kalman inversion": by_kalman,
    "cubic: adjoint, batches of 8": partial(by_adjoint, kind=Cubic),
    "emulator, batches of 1": partial(by_emulator, batch=1),
    "emulator, batches of 8": by_emulator,
    "adjoint, batches of 1, a fifth": partial(by_adjoint, batch=1, share=5),
    "sparse CGE, ten times the rows": by_sparse_cge,
    "adjoint, batches of 1, a fifth, 4 replays of all rows": partial(by_repeated_rows, third=False),
    "adjoint, batches of 1, a fifth, 4 replays of the last third": by_repeated_rows,
}


@cache
def climate_of_truth() -> NDArray[Any]:
    """Two samples of long runs of the full system, by twentieths of a unit: `(runs, times, cells)`."""
    kept = protocol.SCRATCH / "lorenz96-climate.npy"
    if not kept.exists():
        generator = np.random.default_rng(3)
        both = [20 * (0.5 + 0.2 * generator.standard_normal((2 * RUNS, CELLS)))]
        both.append(0.1 * generator.standard_normal((2 * RUNS, CELLS * closure.FAST)))
        states = []
        for step in range(5000 + LONG * 10):
            if step >= 5000 and step % (10 * EVERY) == 0:
                states.append(both[0].copy())
            both = closure.runge_kutta(both, 0.001)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.stack(states, axis=1).astype(np.float32))
    return np.load(kept)


def climate(runs: NDArray[Any], reference: NDArray[Any]) -> dict[str, Any]:
    """What long runs `(runs, times, cells)` are like, beside others."""
    stays = np.abs(np.nan_to_num(runs, nan=np.inf)).max(axis=(1, 2)) < BLOWN_UP
    found: dict[str, Any] = {"stable": int(stays.sum()), "of": len(runs)}
    if not stays.any():
        return found
    bins = np.linspace(-20, 30, 101)
    here, there = (np.histogram(x, bins)[0] / x.size for x in (runs[stays], reference))
    near, far = spectrum(runs[stays]), spectrum(reference)
    off = float(np.sqrt(np.mean(np.log10(near / far) ** 2)))
    return found | {
        "hellinger": float(np.sqrt(max(0.0, 1 - np.sqrt(here * there).sum()))),
        "spectrum": off,
        "histogram": [round(float(share), 6) for share in here],
    }


def spectrum(runs: NDArray[Any]) -> NDArray[Any]:
    """The mean power of a cell by frequency, from windows of ten units of time."""
    window = round(10 / (0.01 * EVERY))
    windows = runs[:, : runs.shape[1] // window * window].reshape(-1, window, CELLS)
    windows = (windows - windows.mean(axis=1, keepdims=True)) * np.hanning(window)[:, None]
    power = (np.abs(np.fft.rfft(windows, axis=1)) ** 2).mean(axis=(0, 2))
    frequencies = np.fft.rfftfreq(window, 0.01 * EVERY)
    return power[(frequencies > 0) & (frequencies <= TOP)]


@torch.no_grad()
def judged(network: nn.Module, part: float) -> dict[str, Any]:
    """Errors over lead time, and climate."""
    flows = truth("test")
    state = torch.cat([flows[:, 0], flows[:, 130]])
    after = torch.cat([flows[:, 1 : FREE + 1], flows[:, 131 : 131 + FREE]])
    by_step = []
    for step in range(FREE):
        state = Solver.advance(state, network(state))
        by_step.append(float(((state - after[:, step]) / truth("training").std()).square().mean()))
    state, states = flows[:, -1], []
    for step in range(LONG if part == 1 else 1000):
        if step % EVERY == 0:
            states.append(state.numpy().copy())
        state = Solver.advance(state, network(state))
    reference = climate_of_truth() if part == 1 else np.stack(states, axis=1)
    return {
        "error": fmean(by_step),
        "by step": [round(error, 7) for error in by_step[4::5]],
        **climate(np.stack(states, axis=1), reference[:RUNS]),
    }


def hosted(steps: int = 20) -> dict[str, Any] | None:
    """Trained inside the Fortran program of examples/lorenz96; its losses and gradients beside the twin's.

    None where the program cannot be compiled.
    """
    folder = Path(__file__).parents[1] / "examples" / "lorenz96"
    if shutil.which("gfortran") is None or not folder.exists():
        return None
    program = run_path(str(folder / "problem.py"))["program"]()
    starts = [batch_of(BATCH, number, 0) for number in range(steps)]
    spread, network = truth("training").std(), network_of(0)

    def prepare(case: int, folder: Path) -> None:
        state = starts[case // BATCH][0][case % BATCH]
        np.savetxt(folder / "start.txt", state.double().numpy()[None], fmt="%.17g")

    call = Call("closure", sees=ArraySpec("x", (CELLS,)), gives=ArraySpec("term", (CELLS,)))
    host = Hosted([program, "model", "start.txt", "1000000"], calls=[call], prepare=prepare, timeout=60)

    def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        cases, wanted = batch
        run = host.run(cases, calls=CALLS, closure=network)
        return ((run.closure.x[:, 1:] - wanted) / spread).square().mean(dim=(1, 2))

    gradient = zo.TangentGradient(network, objective, boxes=[host], seed=0)
    descent, twin, off, cosines = Descent(network, steps), objective_of(Solver.advance), [], []
    for number, (state, wanted) in enumerate(starts):
        cases = torch.arange(BATCH) + BATCH * number
        with torch.no_grad():
            values = objective(network, (cases, wanted)), twin(network, (state, wanted))
        off.append(float(((values[0] - values[1]).abs() / values[1]).max()))
        exact = torch.autograd.grad(twin(network, (state, wanted)).mean(), list(network.parameters()))
        gradient.backward((cases, wanted))
        given = [weights.grad for weights in network.parameters() if weights.grad is not None]
        if given:  # none as long as the response to a first dither is waited for
            one, other = (torch.cat([part.flatten() for part in parts]) for parts in (given, exact))
            cosines.append(float(one @ other / one.norm() / other.norm()))
        descent.step()
    host.close()
    return {"losses off by": max(off), "cosines with the twin's gradient": cosines}


def main(words: Sequence[str]) -> None:
    """The command line."""
    asked = protocol.options("lorenz96", __doc__).parse_args(words)
    torch.set_num_threads(1)
    part = 1.0 if asked.size == "small" else 0.002
    kept = protocol.SCRATCH / "lorenz96-lines.json"
    lines: dict[str, dict[str, Any]] = {}
    if asked.size == "small" and kept.exists():
        known = json.loads(kept.read_text())
        lines = known["lines"] if known["versions"] == versions() else {}
    for name, method in LINES.items():
        for seed in SEEDS if asked.size == "small" else (0,):
            if str(seed) not in lines.setdefault(name, {}):
                began = process_time()
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", zo.TangentWarning)
                    network, rows = method(seed, part)
                took = process_time() - began
                known = {"rows": rows / ROWS, "seconds": round(took, 1), "warnings": len(caught)}
                lines[name][str(seed)] = judged(network, part) | known
                print(
                    name,
                    seed,
                    {k: v for k, v in lines[name][str(seed)].items() if k not in LISTS},
                    flush=True,
                )
                if asked.size == "small":
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    atomic.write_bytes(kept, json.dumps({"versions": versions(), "lines": lines}).encode())
    if asked.size == "small":
        written(words, lines)
    print(table(lines))


def written(words: Sequence[str], lines: dict[str, dict[str, Any]]) -> None:
    """The results' file and the picture; lines that are not there were not run."""
    lines = {name: by_seed for name, by_seed in lines.items() if by_seed}
    floor = climate(climate_of_truth()[RUNS:], climate_of_truth()[:RUNS])
    results = {"seeds": SEEDS, "lines": lines, "two samples of the truth": floor, "hosted": hosted()}
    protocol.write("lorenz96", words, results, protocol.path("lorenz96", "small"))
    picture(results, Path(__file__).parents[1] / "examples" / "lorenz96" / "ways.png")


LISTS = ("by step", "histogram")
DRAWN = {
    "no closure": "tab:gray",
    "offline": "tab:green",
    "adjoint, batches of 8": "tab:blue",
    "tangents, batches of 8": "tab:red",
    "adjoint, batches of 1": "navy",
    "tangents, batches of 1": "salmon",
    "tangents, batches of 1, a fifth, 4 replays of all rows": "darkred",
    "emulator, batches of 1": "tab:orange",
    "cubic: ensemble Kalman inversion": "tab:purple",
}


def picture(results: dict[str, Any], to: Path) -> None:
    """Errors over lead time, and histograms of a cell in long runs, means over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    errors, histograms = figure.subplots(1, 2)
    edges = np.linspace(-20, 30, 101)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    for name, colour in DRAWN.items():
        runs = [*results["lines"].get(name, {}).values()]
        if runs:
            curve = np.mean([run["by step"] for run in runs], axis=0)
            errors.semilogy(0.05 * np.arange(1, len(curve) + 1), curve, color=colour, label=name)
            shares = np.mean([run["histogram"] for run in runs if "histogram" in run], axis=0)
            histograms.plot(middle, shares / width, color=colour)
    truth_of = np.asarray(results["two samples of the truth"]["histogram"])
    histograms.fill_between(middle, truth_of / width, color="0.85", label="the full system")
    errors.set(xlabel="lead time", ylabel="error / variance")
    histograms.set(xlabel="a slow cell", ylabel="density", xlim=(-15, 20))
    errors.legend(fontsize=6)
    histograms.legend(fontsize=7)
    figure.savefig(to, dpi=110)


def table(lines: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    heads = "", "rows", "error of 100 free steps", "mean", "Hellinger", "spectrum", "stable"
    text = []
    for name, by_seed in lines.items():
        runs = [*by_seed.values()]
        errors = ", ".join(f"{run['error']:.3f}" for run in runs)
        rows = fmean(run["rows"] for run in runs)
        hellinger, off = (
            ", ".join(f"{run[of]:.3f}" if of in run else "-" for run in runs)
            for of in ("hellinger", "spectrum")
        )
        stays = f"{sum(run['stable'] for run in runs)} of {sum(run['of'] for run in runs)}"
        mean = fmean(run["error"] for run in runs)
        text.append((name, f"{rows:.2f}", errors, f"{mean:.3f}", hellinger, off, stays))
    return protocol.markdown(heads, text)
