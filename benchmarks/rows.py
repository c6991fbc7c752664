"""Error over rows: first order, and learned tangents with anchored replay, at a share of first order's rows.

    python -m benchmarks rows --size ci                      two windows of one problem; written nowhere
    python -m benchmarks rows --size small                   problems of `tangents`, two seeds
    python -m benchmarks rows --size small --problems double-pendulum --seeds 2 3
    python -m benchmarks rows --size small --problems gray-scott --shares 0.2 --controls stored-derivative
    python -m benchmarks rows --size small --problems gray-scott --shares 0.1 0.4
    python -m benchmarks rows --size small --steps --problems henon-heiles coupled-map --seeds 3 4 5

First order is run as `tangents` runs it, and tuned at the same rows: from batches of 1 and of 4 rows, with
the usual learning rate and with twice that, on to half and twice the rate and a quarter and four times the
batch until none of these is better on validation data; its gradients are shortened as those of tangents are.
What was measured before that has four trainings to choose from and no bound ("tried": 4). The others have one
row a batch. Replays are those of the library's own rule, and no setting is chosen for a problem. --shares
are those of first order's rows. With --batches first order alone is run, with batches of 1, 4 and 16 rows.

With --steps there are these lines: replays with the usual rate and with the suggested one
(`zo.suggested_rate`); the latter with batches beside that no box has answered (`TangentGradient.imagine`),
where batches cost no row; and at the least share a plain surrogate, fitted in rounds to the network's rows,
through which the network is trained alone, with the best of several rates on validation data.

With --controls there are these lines in the place of the others, all of them or those that are named:

    no-derivative       replays of what was recorded alone, without any derivative of the box
    model-alone         replays in which the model's own values stand for what was recorded
    stored-derivative   first order with replays of its own: y_k + F'(x_k) (x' - x_k), what it has stored
    true-derivative     replays that the box itself answers, for nothing: no model can do more with these rows
    wider               first order at all rows with half and with four times the usual learning rate

Errors are on data that no training has seen. Results go into `benchmarks/results/rows/PROBLEM.json`
(`by_batch/PROBLEM.json`, `controls/PROBLEM.json`, `steps/PROBLEM.json`) as they come; what is there is not
measured again. At the end `table.md`, `rows.png` and `batches.png` are written there, `steps/table.md` and
`steps/steps.png`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.tangents.methods import first_order
from benchmarks.tangents.problem import BenchmarkProblem
from benchmarks.tangents.problems import CONTROLLERS, problems
from benchmarks.tangents.surrogates import in_rounds
from blackbox.words import counted
from tasks.folder import atomic
from tasks.folder.machine import machine, versions
from tasks.report.pictures import figure, save
from zo.batches import count_rows, map_tensors, tensors
from zo.tangents import Linearised, LinearMap, TrustPolicy
from zo.tangents.record.pairs import CallPairs
from zo.tangents.step.clipping import Clipping

FOLDER = protocol.RESULTS / "rows"
BY_BATCH, CONTROLLED, BY_STEPS = FOLDER / "by_batch", FOLDER / "controls", FOLDER / "steps"
SMALL = (
    *("double-pendulum", "gray-scott", "kuramoto-sivashinsky", "brusselator", "fitzhugh-nagumo"),
    *("van-der-pol", "lorenz-96", "coupled-map", "implicit-diffusion", "advection-reaction"),
    *("shallow-water", "mixed-units", "vorticity", "ks-26-8", "ks-3k", "ks-3k-noise", "wake-1k"),
    *("double-pendulum-wall", "fitzhugh-nagumo-noise", "fitzhugh-nagumo-failing"),
    *("filter", "brusselator-20k", "wake-30k", "wake-30k-unroll-16", "wake-260k", "wake-32x64"),
    *("kolmogorov", "ks-26-8-unroll-8", "ks-52-12", "kuramoto-sivashinsky-32", *CONTROLLERS),
)
SHARES = (0.05, 0.2)  # of first order's rows
MORE_SHARES = (0.05, 0.1, 0.2, 0.4)  # which may be asked for
BATCHES, RATES = (1, 4), (1.0, 2.0)  # with which first order is tuned, to begin with
LARGEST_BATCH, HIGHEST_RATE = 64, 64.0  # where that ends
CLIP = 2.0  # of first order, as of tangents
IMAGINED_SEEDS = 7_000  # beyond those of trainings: of batches that no box has answered
REPLAYS, IMAGINATIONS = 12, 40  # that follow a window, as is supposed where a rate is suggested
IMAGINED_ROWS = 8  # of a batch that no box has answered
WIDER = (0.5, 4.0)  # rates beside these
CONTROLS = ("no-derivative", "model-alone", "stored-derivative", "true-derivative", "wider")
ENOUGH = 1.05  # times the error of first order tuned at all rows
AS_BENCHMARKED, ALL_ROWS, NOT_RUN = "first order", "first order, tuned, 1", "not run"
SHOWN = (  # in the picture: line, label, colour, mark, size
    ("replay, 0.2", "no derivative, replay: a fifth of the rows", "#0072b2", "o", 46),
    ("replay, 0.05", "no derivative, replay: a twentieth", "#56b4e9", "o", 22),
    ("tangents, 0.2", "no derivative, no replay: a fifth", "#e69f00", "s", 26),
    ("first order, tuned, 0.2", "first order tuned at a fifth", "#666666", "^", 30),
)
HEAD = """Error on data that no training has seen, over that of first order tuned at all of its rows (1
or 4 rows a batch, the usual learning rate or twice that, chosen on validation data); in brackets the rows,
over those of first order as `tangents` benchmarks it. The median over seeds. A star: a warning came in the
run. Tangents and replays have one row a batch and the usual learning rate, and buy no probes where trust is
lost; no setting is chosen for a problem. Controls replay without a derivative, with the model's own values,
with first order's own derivative as it was stored, and with answers of the box itself, which cost nothing
there. "First warning": the share of the rows of a training with replays at a fifth that was spent where its
first warning came, a number for each seed, where it was noted. Made by `python -m benchmarks rows --size
small`, with `--controls` for these.

Nothing here is measured with the wider grid and the bound on gradients that first order has now: four
trainings to choose from, of which it takes the highest rate in most, and no bound, where tangents have one.
What a wider grid makes of it: `steps/table.md`.

"""


HEAD_OF_STEPS = """Error on data that no training has seen, over that of first order tuned at all of its rows:
from batches of 1 and 4 rows and twice or four times the usual rate on to half and twice the rate and a
quarter and four times the batch, until none of these is better on validation data; gradients are shortened at
twice the median of the last 25, for first order as for tangents. "First order's choice": rows of a batch x
factor on the usual rate, for each seed. "Suggested rate": `zo.suggested_rate` for thirteen steps a window.
"Imagined": with batches beside of eight rows that no box has answered, as many as
`TangentGradient.imaginations` says, and the rate for 53 steps a window. "Surrogate": a model alone, fitted in
six rounds to the network's rows, 1,200 steps on such batches, the best of three rates or more on validation
data. Medians over seeds. Made by `python -m benchmarks rows --size small --steps`.

"""


@dataclass(frozen=True)
class Way:
    """A way to spend rows.

    Attributes:
        share: of the rows of first order.
        batch: rows of a batch; None for the problem's.
        rate: factor on the problem's learning rate.
        derivative: of the box: its twin's ("true"), learned ("learned"), learned with the model's own values
            in replays ("model"), its twin's where it was recorded ("stored"), none, as in no-gradient
            ("cut"), or that of a model that stands for the box ("surrogate").
        replays: whether recorded windows are replayed.
        suggested: whether the rate is the one that is suggested for so many steps, times `rate`.
        imagined: whether batches follow that no box has answered.
    """

    share: float = 1.0
    batch: int | None = None
    rate: float = 1.0
    derivative: Literal["true", "learned", "model", "stored", "cut", "surrogate"] = "true"
    replays: bool = False
    suggested: bool = False
    imagined: bool = False


class ModelAlone(zo.tangents.AutoTangent):
    """The default's tangent, whose replays answer M(x') in the place of y_k + M(x') - M(x_k)."""

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """What the default's tangent says there, but for what is added to y_k in a replay."""
        return [_Unanchored(at) for at in super().at_each(calls)]


class _Unanchored(Linearised):
    """A tangent at the rows of a call, whose change begins at the recorded answers."""

    def __init__(self, at: Linearised) -> None:
        super().__init__(at.rows)
        self._at = at

    @property
    def values(self) -> Tensor | None:
        """The tangent's."""
        return self._at.values

    def push(self, d: Tensor) -> Tensor:
        """The tangent's."""
        return self._at.push(d)

    def pull(self, v: Tensor) -> Tensor:
        """The tangent's."""
        return self._at.pull(v)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """M(x') - y_k."""
        change, known = self._at.to(z, others), self._at.values
        return change if known is None else change + (known - self.rows.y)


class Stored(zo.tangents.ModelTangent):
    """The box's own derivative at the recorded input, to which a replay is linear."""

    def at(self, rows: CallPairs) -> Linearised:
        """J of the model, and its changes by that alone."""
        at = super().at(rows)
        return LinearMap(rows, at.push, at.pull)


def ways(shares: Sequence[float] = SHARES) -> dict[str, list[Way]]:
    """The lines of the table: of several ways the one that is best on validation data counts."""
    lines = {AS_BENCHMARKED: [Way()]}
    for share in (*shares, 1.0):
        lines[f"first order, tuned, {share:g}"] = [Way(share, b, rate) for b in BATCHES for rate in RATES]
    for share in shares:
        lines[f"tangents, {share:g}"] = [Way(share, 1, derivative="learned")]
        lines[f"replay, {share:g}"] = [Way(share, 1, derivative="learned", replays=True)]
    return lines


def controls(shares: Sequence[float] = SHARES, names: Sequence[str] = CONTROLS) -> dict[str, list[Way]]:
    """The lines of what a gain may come from: reuse alone, the model's values, and the derivative."""
    by_line = {}
    for share in shares:
        lines = {
            "no-derivative": Way(share, 1, derivative="cut", replays=True),
            "model-alone": Way(share, 1, derivative="model", replays=True),
            "stored-derivative": Way(share, 1, derivative="stored", replays=True),
            "true-derivative": Way(share, 1, replays=True),
        }
        by_line |= {f"replay, {n.replace('-', ' ')}, {share:g}": [w] for n, w in lines.items() if n in names}
    if "wider" in names:
        by_line["first order, wider, 1"] = [Way(1.0, batch, rate) for batch in BATCHES for rate in WIDER]
    return by_line


def by_batch() -> dict[str, list[Way]]:
    """First order with batches of three sizes, at three numbers of rows, each with the better rate."""
    lines = {AS_BENCHMARKED: [Way()]}
    for batch in (1, 4, 16):
        for share in (*SHARES, 1.0):
            lines[f"batch {batch}, {share:g}"] = [Way(share, batch, rate) for rate in RATES]
    return lines


def by_steps(problem: BenchmarkProblem, shares: Sequence[float] = SHARES) -> dict[str, list[Way]]:
    """What steps and fresh batches buy at the same rows."""
    lines = {ALL_ROWS: [Way(1.0, batch, rate) for batch, rate in ((1, 2.0), (1, 4.0), (4, 4.0))]}
    for share in shares:
        replayed = Way(share, 1, derivative="learned", replays=True)
        lines[f"replay, {share:g}"] = [replayed]
        lines[f"replay, suggested rate, {share:g}"] = [replace(replayed, suggested=True)]
        if problem.fresh is not None:
            imagining = replace(replayed, suggested=True, imagined=True)
            lines[f"replay, suggested rate, imagined, {share:g}"] = [imagining]
        if share == min(shares) and problem.fresh is not None:
            rates = (2.0, 4.0)  # to begin with
            lines[f"surrogate, {share:g}"] = [Way(share, 1, rate, derivative="surrogate") for rate in rates]
    return lines


def neighbours(way: Way) -> list[Way]:
    """Ways with half and twice the rate, and with a quarter and four times the batch."""
    batch = way.batch or 1
    rates = [way.rate / 2, way.rate * 2] if way.rate < HIGHEST_RATE else [way.rate / 2]
    sizes = [size for size in (batch // 4, 4 * batch) if 1 <= size <= LARGEST_BATCH]
    same = [replace(way, rate=rate) for rate in rates]
    return same if way.derivative == "surrogate" else same + [replace(way, batch=size) for size in sizes]


def tuned(problem: Callable[[], BenchmarkProblem], several: Sequence[Way], seed: int) -> dict[str, Any]:
    """The training of several ways, and of those beside the best, that does best on validation data.

    One way is not tuned. More are, until none that is beside the best is better.
    """
    tried = {way: train(problem(), way, seed) for way in several}
    chosen = several[0]
    while len(several) > 1:
        chosen = min(tried, key=lambda way: _validation(tried[way]))
        beside = [way for way in neighbours(chosen) if way not in tried]
        if not beside:
            break
        tried[beside[0]] = train(problem(), beside[0], seed)
    grid = [[way.batch, way.rate, trial["validation"]] for way, trial in tried.items()]
    return tried[chosen] | {"tried": len(tried)} | ({"grid": grid} if len(tried) > 1 else {})


def drawn(problem: BenchmarkProblem, seed: int, step: int, rows: int) -> Any:
    """The first rows of a step's batch; of those of several steps where one has fewer."""
    several = -(-rows // count_rows(problem.batch(seed, 1)))
    batches = [problem.batch(seed, (step - 1) * several + number) for number in range(1, several + 1)]
    columns = zip(*map(tensors, batches), strict=True)
    whole = iter([torch.cat(column)[:rows] for column in columns])
    return map_tensors(lambda _: next(whole), batches[0])


def train(problem: BenchmarkProblem, way: Way, seed: int, most: int | None = None) -> dict[str, Any]:
    """Train with the rows that a way spends.

    Returns:
        The errors on validation and on test data, rows of the box, replays, seconds of processor time, and
        how many rows were spent where the first warning came; None without one.
    """
    network, first = problem.start(seed), problem.batch(seed, 1)
    usual = count_rows(first)
    batch = way.batch or usual
    steps = most or max(2, round(problem.steps * way.share * usual / batch))
    if way.derivative == "surrogate":
        return _surrogate(problem, way, seed, network, steps)
    rate = way.rate
    if way.suggested:
        further = REPLAYS + (IMAGINATIONS if way.imagined else 0)
        optimiser_steps, usually = steps * (1 + further), problem.steps * usual // batch
        rate *= zo.suggested_rate(1.0, usual_steps=usually, steps=optimiser_steps)
    gradient: Any
    around = way.replays or way.derivative != "true"
    if around:
        objective = problem.objective(problem.box)
        settings: dict[str, Any] = {"mu": problem.mu, "seed": seed, "max_rows": 1.0}
        if way.derivative == "model":
            settings |= {"tangent": ModelAlone(problem.box, seed)}
        elif way.derivative != "learned":  # there is nothing to check
            assert problem.exact is not None
            tangent = {
                "cut": zo.tangents.ZeroTangent,
                "stored": partial(Stored, problem.exact),
                "true": partial(zo.tangents.ModelTangent, problem.exact),
            }[way.derivative]()
            settings |= {"tangent": tangent, "trust_policy": TrustPolicy(check_every=None)}
        gradient = zo.ProbedGradient(network, objective, boxes=[problem.box], **settings)
    else:
        gradient = first_order(problem, network)
    bound = Clipping(None if around else CLIP)  # tangents have their own
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    before, replays, imagined, began = problem.box.ledger.rows_asked, 0, 0, process_time()
    warned: int | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            falling = 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            for group in optimizer.param_groups:
                group["lr"] = problem.learning_rate * rate * falling
            optimizer.zero_grad()
            try:
                gradient.backward(drawn(problem, seed, step, batch))
            except zo.FailedBatchError:
                continue  # of one row, which failed
            bound.shorten(network.parameters())
            optimizer.step()
            for _ in range(gradient.replays() if way.replays else 0):
                optimizer.zero_grad()
                gradient.replay()
                optimizer.step()
                replays += 1
            for number in range(gradient.imaginations() if way.imagined else 0):
                assert problem.fresh is not None
                optimizer.zero_grad()
                batch_of = problem.fresh(seed + IMAGINED_SEEDS, 100 * step + number, IMAGINED_ROWS)
                if gradient.imagine(batch_of):
                    optimizer.step()
                    imagined += 1
            if warned is None and any(_of_tangents(warning) for warning in caught):
                warned = problem.box.ledger.rows_asked - before
    seconds = process_time() - began
    rows = problem.box.ledger.rows_asked - before if around else gradient.rows
    return {
        "validation": problem.validate(network),
        "error": problem.error(network),
        "rows": rows,
        "replays": replays,
        "imagined": imagined,
        "seconds": seconds,
        "batch": batch,
        "rate": rate,
        "warnings": sum(map(_of_tangents, caught)),
        "first warning at": warned,
    }


def _surrogate(
    problem: BenchmarkProblem, way: Way, seed: int, network: nn.Module, batches: int
) -> dict[str, Any]:
    """A model that stands for the box, fitted in rounds, through which the network is trained alone."""

    def fresh(number: int) -> Any:
        if problem.fresh is None:  # rows of the data that exist
            return drawn(problem, seed + IMAGINED_SEEDS, number + 1, IMAGINED_ROWS)
        return problem.fresh(seed + IMAGINED_SEEDS, number, IMAGINED_ROWS)

    began, before = process_time(), problem.box.ledger.rows_asked
    real = [drawn(problem, seed, number + 1, 1) for number in range(batches)]
    rate = problem.learning_rate * way.rate
    updates = in_rounds(problem, network, real, fresh, rate, seed)
    return {
        "validation": problem.validate(network),
        "error": problem.error(network),
        "rows": problem.box.ledger.rows_asked - before,
        "replays": 0,
        "imagined": updates,
        "seconds": process_time() - began,
        "batch": way.batch,
        "rate": way.rate,
        "warnings": 0,
    }


def _validation(trial: dict[str, Any]) -> float:
    return trial["validation"] if math.isfinite(trial["validation"]) else math.inf


def _of_tangents(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, zo.TangentWarning)


def best(tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The training that does best on validation data."""
    return min(tried, key=_validation)


def measure(name: str, seeds: Sequence[int], lines: dict[str, list[Way]], folder: Path) -> dict[str, Any]:
    """Measure the ways that are not in the problem's file yet, and return all of it."""
    path = folder / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    option = {BY_BATCH: " --batches", CONTROLLED: " --controls", BY_STEPS: " --steps"}.get(folder, "")
    for seed in seeds:
        for line, several in lines.items():
            if line in result["runs"].setdefault(str(seed), {}):
                continue
            result["runs"][str(seed)][line] = tuned(problems("small")[name], several, seed)
            result |= {
                "machine": machine(),
                "versions": versions(),
                "command": f"python -m benchmarks rows --size small --problems {name}{option}",
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, result)
            print(f"{name}, seed {seed}, {line}: {result['runs'][str(seed)][line]}", flush=True)
    return result


Measured = dict[str, dict[str, Any]]  # problem -> what its file holds


def over(result: dict[str, Any], line: str, key: str, against: str) -> float | None:
    """A line's error or rows, over another's, the median over seeds; None where one of them was not run."""
    runs = [run for run in result["runs"].values() if line in run and against in run]
    return median(run[line][key] / run[against][key] for run in runs) if runs else None


def over_tuned(result: dict[str, Any], line: str) -> float | None:
    """A line's error over that of first order tuned at all rows."""
    return over(result, line, "error", ALL_ROWS)


def replayed(result: dict[str, Any]) -> list[float]:
    """The shares of the rows at which replays were run."""
    return [share for share in MORE_SHARES if over_tuned(result, f"replay, {share:g}") is not None]


def share_needed(result: dict[str, Any]) -> float | None:
    """The smallest share of the rows at which replays end near first order tuned at all rows, if any."""
    shares = (
        share for share in MORE_SHARES if (over_tuned(result, f"replay, {share:g}") or math.inf) <= ENOUGH
    )
    return next(shares, None)


def first_warnings(result: dict[str, Any], line: str = "replay, 0.2") -> str:
    """The share of a line's rows that was spent where the first warning came, of each seed that has it."""
    noted = [run[line] for run in result["runs"].values() if "first warning at" in run.get(line, ())]
    spent = [(run["first warning at"], run["rows"]) for run in noted]
    return ", ".join("none" if at is None else f"{at / rows:.2f}" for at, rows in spent)


def table(measured: Measured) -> str:
    """Errors over those of first order tuned at all rows, in brackets the rows; a last line with medians."""
    every = ways(MORE_SHARES) | controls(MORE_SHARES)
    lines = [
        line for line in every if line != ALL_ROWS and any(over_tuned(o, line) for o in measured.values())
    ]
    text = [
        "| problem | seeds | " + " | ".join(lines) + f" | rows to {ENOUGH:g} | first warning |",
        "| --- " * (4 + len(lines)) + "|",
    ]
    for name, result in measured.items():
        cells = []
        for line in lines:
            error, rows = over_tuned(result, line), over(result, line, "rows", AS_BENCHMARKED)
            said = any(run[line]["warnings"] for run in result["runs"].values() if line in run)
            cells.append(NOT_RUN if error is None else f"{error:.2f}{'*' * said} ({rows:.2f})")
        seeds = sum(any(line.startswith("replay") for line in run) for run in result["runs"].values())
        share = share_needed(result)
        reached = f"{share:g}" if share else f"more than {replayed(result)[-1]:g}"
        text.append(
            f"| {name} | {seeds} | " + " | ".join(cells) + f" | {reached} | {first_warnings(result)} |"
        )
    middle = []
    for line in lines:
        errors = [error for result in measured.values() if (error := over_tuned(result, line)) is not None]
        middle.append(f"{median(errors):.2f}, worst {max(errors):.2f}" if errors else NOT_RUN)
    counts = [sum(share_needed(result) == share for result in measured.values()) for share in MORE_SHARES]
    reached = ", ".join(
        f"{count} at {share:g}" for count, share in zip(counts, MORE_SHARES, strict=True) if count
    )
    text.append("| **median** | | " + " | ".join(middle) + f" | {reached} of {len(measured)} | |")
    return HEAD + "\n".join(text) + "\n"


def steps_table(measured: Measured) -> str:
    """What steps and fresh batches buy: errors over those of first order tuned at all rows, and medians."""
    every = [line for line in by_steps_lines() if any(over_tuned(o, line) for o in measured.values())]
    text = ["| problem | kind | seeds | first order's choice | " + " | ".join(every) + " |"]
    text.append("| --- " * (4 + len(every)) + "|")
    kinds = {name: "controller" if name in CONTROLLERS else "correction" for name in measured}
    for name, result in measured.items():
        runs = [run for run in result["runs"].values() if ALL_ROWS in run]
        choices = [f"{run[ALL_ROWS]['batch']} x {run[ALL_ROWS]['rate']:g}" for run in runs]
        errors = [over_tuned(result, line) for line in every]
        cells = [NOT_RUN if error is None else f"{error:.2f}" for error in errors]
        text.append(f"| {name} | {kinds[name]} | {len(runs)} | {', '.join(choices)} | {' | '.join(cells)} |")
    for kind in ("controller", "correction"):
        cells = []
        for line in every:
            errors = [over_tuned(result, line) for name, result in measured.items() if kinds[name] == kind]
            known = [error for error in errors if error is not None]
            cells.append(f"{median(known):.2f} of {len(known)}" if known else NOT_RUN)
        text.append(f"| **median** | {kind} | | | {' | '.join(cells)} |")
    return HEAD_OF_STEPS + "\n".join(text) + "\n"


SHOWN_OF_STEPS = (  # as `SHOWN`
    ("replay, 0.05", "replay, the usual rate", "#999999", "o", 26),
    ("replay, suggested rate, 0.05", "replay, the suggested rate", "#0072b2", "o", 46),
    ("replay, suggested rate, imagined, 0.05", "and imagined batches", "#009e73", "P", 50),
    ("surrogate, 0.05", "a surrogate alone", "#d55e00", "^", 34),
)


def steps_picture(measured: Measured) -> Figure:
    """What a twentieth of the rows buys by steps and fresh batches, controllers above corrections."""
    made, axes = figure(7.2, 1.3 + 0.34 * len(measured))
    (place,) = axes.flat
    names = sorted(measured, key=lambda name: (name in CONTROLLERS, name))
    for line, label, colour, mark, size in SHOWN_OF_STEPS:
        points = [(over_tuned(measured[name], line), row) for row, name in enumerate(names)]
        known = [(error, row) for error, row in points if error is not None]
        if known:
            place.scatter(*zip(*known, strict=True), s=size, c=colour, marker=mark, label=label, zorder=3)
    place.axvline(1.0, color="#333333", linewidth=1)
    place.set_yticks(range(len(names)), names)
    place.set_xscale("log")
    place.set_xticks([0.25, 0.5, 1, 2, 5], ["0.25", "0.5", "1", "2", "5"])
    place.minorticks_off()
    place.set_xlabel("test error at a twentieth of the rows, over that of first order tuned at all of them")
    made.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return made


def by_steps_lines() -> list[str]:
    """The lines of `by_steps` beside first order, in the order of the table."""
    named = ("replay", "replay, suggested rate", "replay, suggested rate, imagined", "surrogate")
    return [f"{line}, {share:g}" for share in MORE_SHARES for line in named]


def picture(measured: Measured) -> Figure:
    """What a fifth and a twentieth of the rows buy on each problem."""
    made, axes = figure(7.2, 1.1 + 0.32 * len(measured))
    (place,) = axes.flat
    names = sorted(
        measured, key=lambda name: over_tuned(measured[name], SHOWN[0][0]) or math.inf, reverse=True
    )
    for line, label, colour, mark, size in SHOWN:
        points = [(over_tuned(measured[name], line), row) for row, name in enumerate(names)]
        known = [(error, row) for error, row in points if error is not None]
        place.scatter(*zip(*known, strict=True), s=size, c=colour, marker=mark, label=label, zorder=3)
    place.axvline(1.0, color="#333333", linewidth=1)
    place.set_yticks(range(len(names)), names)
    place.set_xscale("log")
    place.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    place.set_xlabel("test error, over that of first order tuned at all of its rows")
    made.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return made


def batches_picture(measured: Measured) -> Figure:
    """Error over rows for each size of batch, a panel for each problem."""
    made, axes = figure(2.6 * len(measured), 2.9, 1, len(measured), sharey=True)
    for place, (name, result) in zip(axes.flat, measured.items(), strict=True):
        for batch, colour in ((1, "#0072b2"), (4, "#56b4e9"), (16, "#e69f00")):
            points = [
                (over(result, f"batch {batch}, {share:g}", key, AS_BENCHMARKED) or math.nan)
                for key in ("rows", "error")
                for share in (*SHARES, 1.0)
            ]
            place.loglog(points[:3], points[3:], "o-", color=colour, label=f"{counted(batch, 'row')} a batch")
        place.set_title(name, fontsize=9)
        place.set_xticks([*SHARES, 1.0], ["1/20", "1/5", "1"])
        place.minorticks_off()
        place.set_yticks(ticks := [0.5, 1, 2, 5], [f"{tick:g}" for tick in ticks])
    axes.flat[0].set_ylabel("test error of first order")
    made.supxlabel("rows, over the usual number", fontsize=9)
    made.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return made


def results() -> Measured:
    """All problems on which replays were run, with the controls beside them."""
    by_problem = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    for path in sorted(CONTROLLED.glob("*.json")):
        for seed, lines in json.loads(path.read_text())["runs"].items():
            runs = by_problem.get(path.stem, {"runs": {}})["runs"]
            runs[seed] = lines | runs.get(seed, {})
    return {name: result for name, result in by_problem.items() if replayed(result)}


def write() -> None:
    """Write the table and the pictures of all problems that were measured, and print the table."""
    measured = results()
    if measured:
        atomic.write_bytes(FOLDER / "table.md", table(measured).encode())
        save(picture(measured), FOLDER / "rows.png")
        print(table(measured))
    by_rate = {path.stem: json.loads(path.read_text()) for path in sorted(BY_STEPS.glob("*.json"))}
    if by_rate:
        atomic.write_bytes(BY_STEPS / "table.md", steps_table(by_rate).encode())
        save(steps_picture(by_rate), BY_STEPS / "steps.png")
        print(steps_table(by_rate))
    batches = {path.stem: json.loads(path.read_text()) for path in sorted(BY_BATCH.glob("*.json"))}
    if batches:
        save(batches_picture(batches), FOLDER / "batches.png")


def main(words: Sequence[str]) -> None:
    """Measure what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=("ci", "small"), default="ci")
    parser.add_argument("--problems", nargs="+", choices=SMALL, default=SMALL)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--shares", nargs="+", type=float, choices=MORE_SHARES, default=SHARES)
    parser.add_argument("--controls", nargs="*", choices=CONTROLS)
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--steps", action="store_true")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)  # small tensors; and every machine has one
    if asked.size == "ci":
        problem = problems("small")[SMALL[0]]()
        for way in (Way(batch=1), Way(batch=1, derivative="learned", replays=True)):
            trained = train(copy.copy(problem), way, 0, most=3)
            print(f"{SMALL[0]}, {way}: {trained['error']:.4f}, {trained['rows']} rows")
        return
    lines, folder = ways(asked.shares), FOLDER
    if asked.batches:
        lines, folder = by_batch(), BY_BATCH
    elif asked.controls is not None:
        lines, folder = controls(asked.shares, asked.controls or CONTROLS), CONTROLLED
    for name in asked.problems:
        if asked.steps:
            lines, folder = by_steps(problems("small")[name](), asked.shares), BY_STEPS
        measure(name, asked.seeds, lines, folder)
    write()
