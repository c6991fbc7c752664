"""Repeated evaluations in a step that is checked: the base, for noise, and some queries at other steps.

`zo.slopes` says what differences over mu and over half of it show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox.errors import BudgetError
from zo.draws import AGAIN, Key
from zo.evaluators.evaluator import mean_changes
from zo.evaluators.loop import Loop
from zo.evaluators.sentinel import ROUNDING
from zo.execution.base import Base
from zo.execution.evaluator_choice import StepEvaluators
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Directions, Perturbation, Perturbations
from zo.slopes import Doubt, doubt_of

# Slopes of each kind that are asked again where they are in doubt: at least, at most, and one in so many. At
# first half of them: more of more weights, since a few that are off may make the gradient wrong.
LEAST, MOST, SHARE = 8, 32, 10
FEW = 4  # all are asked
DOUBTFUL = 0.05  # by which so few may be off for no more to be asked
# By which slopes may be off. Directions have an error of their own, of which 0.3 adds a twentieth.
OFF = {Coordinates: 0.1, Directions: 0.3}
FAR = 2**40  # steps on, whose directions are asked where a step has too few


@dataclass(frozen=True)
class RepeatFindings:
    """The findings from queries that were asked again in a step.

    Attributes:
        noise: How far evaluations of the base were apart at most.
        doubt: About the slopes; None if there is none.
        checks: How many queries that took.
        losses: The base loss of each process.
    """

    noise: float = 0.0
    doubt: Doubt | None = None
    checks: int = 0
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Asker:
    """Evaluates queries of a step anew, one at a time, as those of its plan were.

    Attributes:
        base: The step's base evaluation.
        begun: The step's evaluators, begun.
    """

    base: Base
    begun: StepEvaluators

    def __call__(self, query: Perturbation, factor: float) -> float:
        """The mean change of a query whose step has another length, over that factor; NaN where it fails."""
        near = 0 < factor <= 1  # others may be too long for the objective
        moved, factor = scaled(self.base.step.parameters, query, factor)
        if factor == 0:  # lost in the rounding of the weight
            return float("nan")
        self.base.step.tally.queries += 1
        try:
            _, changes = self.begun.for_queries(query)
            return float(mean_changes(self.base.losses, changes(moved))[0]) / factor
        except BudgetError:
            raise
        except Exception:
            if near:
                raise
            return float("nan")

    def slopes(self, plan: Perturbations, numbers: Tensor, factor: float) -> Tensor:
        """A change for each row of `Perturbations.slopes`, `(slopes, queries of one)`; see `differenced`."""
        changes = [[self(plan.chunk(n, n + 1), factor) for n in row] for row in numbers.tolist()]
        return differenced(torch.tensor(changes, dtype=torch.float64))


def scaled(parameters: Parameters, query: Perturbation, factor: float) -> tuple[Perturbation, float]:
    """A single query with a step of another length, and the factor that the weights' floats really allow."""
    if isinstance(query, Directions):
        return Directions(query.steps * factor), factor
    steps = parameters.steps(query.indices, factor * float(query.steps)).to(query.steps)
    return Coordinates(query.indices, steps), float(steps) / float(query.steps)


def differenced(changes: Tensor) -> Tensor:
    """Changes `(slopes, queries of one)` as one number each: of two signs, half of their difference."""
    return changes[:, 0] if changes.shape[1] == 1 else (changes[:, 0] - changes[:, 1]) / 2


def noise_of(base: Base) -> Tensor:
    """Measure how far the mean loss is off when the base is evaluated once more."""
    queries = Coordinates(torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    base.step.tally.queries += 1
    changes = Loop().begin(base.step, base.losses)(queries)[0, base.survived]
    return changes[torch.isfinite(changes)].double().sum().abs() / len(changes)


def reordered(base: Base) -> float:
    """Return how far the mean loss may be off by kernels that add up in another order each time."""
    dtypes = (base.losses.dtype, *(tensor.dtype for tensor in base.step.parameters.tensors))
    return ROUNDING * max(torch.finfo(dtype).eps for dtype in dtypes) * float(base.loss().abs())


def doubt_about(
    ask: Asker,
    plan: Perturbations,
    difference: Tensor,
    valid: Tensor,
    key: Key,
    anew: Callable[[Key], Perturbations],
) -> Doubt | None:
    """Ask some queries again at half of mu, forward ones also back; where off, more, also at twice of mu.

    Args:
        ask: Evaluates queries once more.
        plan: The queries of the step.
        difference: The changes by the queries, `(queries,)`.
        valid: `(queries,)` bool, False where one was dropped.
        key: The key of the step, on which draws depend.
        anew: Plans the queries of another step, for directions where this one has too few to judge by.

    Returns:
        The doubt about the kind of queries with the largest errors; None where no error is too large.
    """
    worst: Doubt | None = None
    for kind, numbers in enumerate(plan.slopes()):
        numbers = numbers[valid[numbers].all(dim=1)]
        changes = differenced(difference[numbers]) if len(numbers) else torch.zeros(0)
        if not changes.any():
            continue
        draws = _draws(changes, key.generator(AGAIN, kind))
        answers: dict[tuple[int, float], float] = {}
        doubt = _sampled(ask, plan, numbers, changes, draws[: asked_at_first(len(changes))], answers)
        if doubt.off <= DOUBTFUL:
            continue
        example = plan.chunk(int(numbers[0, 0]), int(numbers[0, 0]) + 1)
        if len(changes) < LEAST and isinstance(example, Directions):
            doubt = _of_more(ask, plan, numbers, changes, anew(key.at(key.step + FAR)), kind)
        else:
            doubt = _sampled(ask, plan, numbers, changes, draws, answers, further=True)
        if doubt.off > OFF[type(example)] and (worst is None or doubt.off > worst.off):
            worst = doubt
    return worst


def asked_at_first(slopes: int) -> int:
    """Return how many of a kind's slopes are first asked again at a step that is checked."""
    return min(slopes, max(FEW, min(MOST, max(LEAST, slopes // SHARE)) // 2))


def most_asked(plan: Perturbations) -> int:
    """Return the most queries that are asked again at a step that is checked, if its slopes are in doubt."""
    most = 0
    for numbers in plan.slopes():
        slopes, per_slope = numbers.shape
        again = 2 * per_slope + 2 * (per_slope == 1)  # over half and over twice of mu; and forward ones back
        first, looked = int(numbers[0, 0]), asked_at_first(slopes) * 2
        if slopes < LEAST and isinstance(plan.chunk(first, first + 1), Directions):
            most += looked + slopes * again + (LEAST - slopes) * (again + per_slope)
        else:
            most += min(slopes, MOST, max(LEAST, slopes // SHARE)) * again
    return most


def _draws(changes: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of slopes, in turn one drawn uniformly and one by the square of its change; all where few.

    Both are drawn one from each of equal parts: a layer with as large a part of the weights, or of the
    gradient's square, is among them. The first half of them is drawn from parts twice as large.
    """
    if len(changes) <= FEW:
        return torch.arange(len(changes))
    count = min(MOST, max(LEAST, len(changes) // SHARE)) // 2
    parts = torch.cat([torch.arange(0, count, 2), torch.arange(1, count, 2)]).double()
    draws = []
    for heights in (torch.arange(1, len(changes) + 1).double(), changes.double().square().cumsum(0)):
        begins = torch.rand(1, generator=generator, dtype=torch.float64)
        places = (parts + begins) / count * heights[-1]
        draws.append(torch.searchsorted(heights, places).clamp(max=len(changes) - 1))
    return torch.stack(draws, dim=1).flatten()


def _sampled(
    ask: Asker,
    plan: Perturbations,
    numbers: Tensor,
    changes: Tensor,
    draws: Tensor,
    asked: dict[tuple[int, float], float],
    *,
    further: bool = False,
) -> Doubt:
    """Judge some slopes; what is asked is noted by slope and factor, for more to be judged with it."""

    def at(factor: float) -> Tensor:
        for draw in draws.tolist():
            if (draw, factor) not in asked:
                asked[draw, factor] = float(ask.slopes(plan, numbers[draw][None], factor))
        return torch.tensor([asked[draw, factor] for draw in draws.tolist()], dtype=torch.float64)

    size = None if len(changes) <= FEW else float(changes.double().square().mean().sqrt())
    back = at(-1.0) if numbers.shape[1] == 1 else None
    doubt = doubt_of(changes[draws], at(0.5), at(2.0) if further else None, size, back=back)
    if further and doubt.cause == "kink":  # or bends of higher order, which half of mu has less of
        return doubt_of(changes[draws], at(0.5), at(2.0), size, back=back, nearer=at(-0.5))
    return doubt


def _of_more(
    ask: Asker, plan: Perturbations, numbers: Tensor, changes: Tensor, other: Perturbations, kind: int
) -> Doubt:
    """Judge a step's few directions with those of another: one alone may have a slope near zero by chance."""
    more = other.slopes()[kind][: LEAST - len(changes)]

    def at(factor: float) -> Tensor:
        first = changes.double() if factor == 1 else ask.slopes(plan, numbers, factor)
        return torch.cat([first, ask.slopes(other, more, factor)])

    back = at(-1.0) if numbers.shape[1] == 1 else None
    steps = at(1.0), at(0.5), at(2.0)
    doubt = doubt_of(*steps, back=back)
    return doubt_of(*steps, back=back, nearer=at(-0.5)) if doubt.cause == "kink" else doubt
