"""A training that spends rows in some way, and the best of several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks.rows.ways import Way, neighbours
from benchmarks.tangents.methods import first_order
from benchmarks.tangents.problem import BenchmarkProblem
from benchmarks.tangents.surrogates import in_rounds
from zo.batches import count_rows, map_tensors, tensors
from zo.tangents import Linearised, LinearMap, TrustPolicy
from zo.tangents.record.pairs import CallPairs
from zo.tangents.step.clipping import Clipping

CLIP = 2.0  # of first order, as of tangents
IMAGINED_SEEDS = 7_000  # beyond those of trainings: of batches that no box has answered
REPLAYS, IMAGINATIONS = 12, 40  # that follow a window, as is supposed where a rate is suggested
FARTHER, HIGHEST = 10.0, 8.0  # a suggested rate: times as far as the usual steps, times the usual rate
IMAGINED_ROWS = 8  # of a batch that no box has answered


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
        rate *= min(HIGHEST, max(1.0, FARTHER * usually / optimiser_steps))
    gradient, around = _gradient_of(problem, way, network, seed, steps)
    bound = Clipping(CLIP if way.derivative == "true" else None)  # other tangents have their own
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    population = zo.RatePopulation(gradient, optimizer, way.factors) if way.factors else None
    before, replays, imagined, began = problem.box.ledger.rows_asked, 0, 0, process_time()
    warned: int | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            falling = 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            for group in optimizer.param_groups:
                group["lr"] = problem.learning_rate * rate * falling

            def fresh(number: int, step: int = step) -> Any:
                assert problem.fresh is not None
                return problem.fresh(seed + IMAGINED_SEEDS, 100 * step + number, IMAGINED_ROWS)

            optimizer.zero_grad()
            try:
                if population is not None:
                    population.step(drawn(problem, seed, step, batch), fresh if way.imagined else None)
                else:
                    gradient.backward(drawn(problem, seed, step, batch))
            except zo.FailedBatchError:
                continue  # of one row, which failed
            if population is None:
                bound.shorten(network.parameters())
                optimizer.step()
                for _ in range(gradient.replays() if way.replays else 0):
                    optimizer.zero_grad()
                    gradient.replay()
                    bound.shorten(network.parameters(), remembered=False)
                    optimizer.step()
                    replays += 1
                for number in range(gradient.imaginations() if way.imagined else 0):
                    optimizer.zero_grad()
                    if gradient.imagine(fresh(number)):
                        optimizer.step()
                        imagined += 1
            if warned is None and any(_of_tangents(warning) for warning in caught):
                warned = problem.box.ledger.rows_asked - before
    if population is not None:
        replays, imagined = gradient.counts.replays, gradient.counts.imagined
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
        **({} if population is None else population.metrics()),
    }


def _gradient_of(
    problem: BenchmarkProblem, way: Way, network: nn.Module, seed: int, steps: int
) -> tuple[Any, bool]:
    """What gives a way's gradients, and whether it is a tangent's."""
    if not way.replays and way.derivative == "true":
        return first_order(problem, network), False
    objective = problem.objective(problem.box)
    settings: dict[str, Any] = {"mu": problem.mu, "seed": seed, "max_rows": 1.0, "steps": steps}
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
    return zo.ProbedGradient(network, objective, boxes=[problem.box], **settings), True


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
