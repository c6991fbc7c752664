"""A training that spends rows in some way, and the best of several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks.rows.ways import SPREAD, Way, neighbours
from benchmarks.tangents.methods import first_order
from benchmarks.tangents.problem import BenchmarkProblem
from tasks.methods.cma_es import CmaEs
from zo.batches import count_rows, map_tensors, tensors
from zo.tangents import Limits, Linearised, LinearMap
from zo.tangents.record.pairs import CallPairs
from zo.tangents.step.clipping import Clipping

CLIP = 2.0  # of first order, as of tangents
REPLAYS = 12  # that follow a window, as is supposed where a rate is suggested
FARTHER, HIGHEST = 10.0, 8.0  # a suggested rate: times as far as the usual steps, times the usual rate
FRESH_SEEDS, FRESH_ROWS = 7_000, 8  # beyond those of trainings, and rows: of batches that no box answers


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

    Args:
        problem: the problem, whose box counts rows.
        way: the way.
        seed: of the start and the batches.
        most: steps on batches that the box answers; None for those of the way's share.

    Returns:
        The errors on validation and on test data, rows of the box, replays, seconds of processor time, and
        how many rows were spent where the first warning came; None without one.
    """
    network, usual = problem.start(seed), count_rows(problem.batch(seed, 1))
    batch = way.batch or usual
    steps = most or max(2, round(problem.steps * way.share * usual / batch))
    gradient: Any
    if way.derivative == "surrogate":
        gradient, rate = None, way.rate
        take = _through_a_model(problem, way, seed, network, steps)
    elif way.derivative == "values":
        gradient, rate = None, way.rate
        search = CmaEs(network, problem.objective(problem.box), SPREAD * rate, diagonal=True, seed=seed)
        steps = max(2, steps // _candidates(network))
        take = partial(_by_values, search)
    else:
        gradient = _gradient_of(problem, way, network, seed, steps)
        rate = _rate(way, steps, problem.steps * usual // batch)
        take = _along(problem, way, network, gradient, rate, steps, seed)
    before, began, warned = problem.box.ledger.rows_asked, process_time(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            with suppress(zo.FailedBatchError):  # of one row, which failed
                take(step, drawn(problem, seed, step, batch))
            if warned is None and any(_of_tangents(warning) for warning in caught):
                warned = problem.box.ledger.rows_asked - before
    seconds, asked = process_time() - began, problem.box.ledger.rows_asked - before
    of_twin = way.derivative == "true" and not way.replays  # which asks the twin alone, and counts its rows
    return {
        "validation": problem.validate(network),
        "error": problem.error(network),
        "rows": gradient.rows if of_twin else asked,
        "replays": gradient.counts.replays if way.replays else 0,
        "seconds": seconds,
        "batch": batch,
        "rate": rate,
        "warnings": sum(map(_of_tangents, caught)),
        "first warning at": warned,
    }


def _rate(way: Way, steps: int, usually: int) -> float:
    """The factor on the problem's rate: the way's; a suggested one makes all steps go ten times as far.

    Args:
        way: the way.
        steps: on windows, each with the replays that are supposed to follow.
        usually: steps of that batch with the problem's own rows.
    """
    if not way.suggested:
        return way.rate
    return way.rate * min(HIGHEST, max(1.0, FARTHER * usually / (steps * (1 + REPLAYS))))


def _along(
    problem: BenchmarkProblem, way: Way, network: nn.Module, gradient: Any, rate: float, steps: int, seed: int
) -> Callable[[int, Any], Any]:
    """What takes a step on a batch, and those that follow it, at a rate that falls along a cosine."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    on_a_batch = (
        _population(problem, gradient, optimizer, way, seed, steps)
        if way.factors
        else _one(way, network, gradient, optimizer)
    )

    def take(step: int, batch: Any) -> None:
        falling = 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        for group in optimizer.param_groups:
            group["lr"] = problem.learning_rate * rate * falling
        optimizer.zero_grad()
        on_a_batch(batch)

    return take


def _population(
    problem: BenchmarkProblem,
    gradient: Any,
    optimizer: torch.optim.Optimizer,
    way: Way,
    seed: int,
    steps: int,
) -> Callable[[Any], Any]:
    """The step on a batch of members at several rates, and perhaps of a surrogate."""
    fresh = partial(_fresh, problem, seed)
    population = zo.Population(
        gradient, optimizer, steps=steps, fresh=fresh, factors=way.factors, surrogate=way.surrogate
    )
    return population.step


def _one(
    way: Way, network: nn.Module, gradient: Any, optimizer: torch.optim.Optimizer
) -> Callable[[Any], None]:
    """What one rate does with a batch: a step on it, and replays."""
    bound = Clipping(CLIP if way.derivative == "true" else None)  # other tangents have their own

    def on_a_batch(batch: Any) -> None:
        gradient.backward(batch)
        bound.shorten(network.parameters())
        optimizer.step()
        for _ in range(gradient.replays() if way.replays else 0):
            optimizer.zero_grad()
            gradient.replay()
            bound.shorten(network.parameters(), remembered=False)
            optimizer.step()

    return on_a_batch


def _candidates(network: nn.Module) -> int:
    """Of a generation, as `cma` has them by default."""
    return 4 + int(3 * math.log(sum(parameter.numel() for parameter in network.parameters())))


def _by_values(search: CmaEs, step: int, batch: Any) -> None:
    """A generation, all of it on one batch."""
    search.backward(batch)
    search.move(step)


def _through_a_model(
    problem: BenchmarkProblem, way: Way, seed: int, network: nn.Module, steps: int
) -> Callable[[int, Any], Any]:
    """What has the box answer a batch, and now and then trains through a model of it alone."""
    optimizer = torch.optim.Adam(network.parameters(), lr=problem.learning_rate * way.rate)
    objective, boxes = problem.objective(problem.box), [problem.box]
    fresh = partial(_fresh, problem, seed)
    surrogate = zo.tangents.Surrogate(
        network, objective, optimizer, fresh, boxes=boxes, steps=steps, seed=seed
    )
    return lambda step, batch: surrogate.step(batch)


def _fresh(problem: BenchmarkProblem, seed: int, number: int) -> Any:
    """A batch that no box answers: of rows that cost nothing, or of the data that exist."""
    if problem.fresh is None:
        return drawn(problem, seed + FRESH_SEEDS, number + 1, FRESH_ROWS)
    return problem.fresh(seed + FRESH_SEEDS, number, FRESH_ROWS)


def _gradient_of(problem: BenchmarkProblem, way: Way, network: nn.Module, seed: int, steps: int) -> Any:
    """What gives a way's gradients."""
    if not way.replays and way.derivative == "true":
        return first_order(problem, network)
    objective = problem.objective(problem.box)
    settings: dict[str, Any] = {"seed": seed, "steps": steps, "limits": Limits(early=1)}
    if way.derivative == "model":
        settings |= {"tangent": ModelAlone(problem.box, seed)}
    elif way.derivative != "learned":  # there is nothing to check
        assert problem.exact is not None
        tangent = {
            "cut": zo.tangents.ZeroTangent,
            "stored": partial(Stored, problem.exact),
            "true": partial(zo.tangents.ModelTangent, problem.exact),
        }[way.derivative]()
        settings |= {"tangent": tangent, "limits": Limits(check_every=None)}
    return zo.TangentGradient(network, objective, boxes=[problem.box], **settings)


def _validation(trial: dict[str, Any]) -> float:
    return trial["validation"] if math.isfinite(trial["validation"]) else math.inf


def _of_tangents(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, zo.TangentWarning)


def best(tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The training that does best on validation data."""
    return min(tried, key=_validation)
