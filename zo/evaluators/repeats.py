"""What is evaluated again in a step that is checked: the base, for noise, and some queries at half of mu.

`zo.slopes` says what differences over mu and over half of it show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox import BudgetError
from zo.base import Base
from zo.draws import Key
from zo.evaluators.evaluator import Changes, Evaluator, mean_changes
from zo.evaluators.loop import Loop
from zo.evaluators.sentinel import ROUNDING
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Directions, Perturbation, Perturbations
from zo.slopes import Doubt, doubt_of

ASKED, FURTHER = 4, 8  # slopes of each kind at half of mu; and where those are in doubt
DOUBTFUL = 0.05  # by which so few may be off for no more to be asked
# By which slopes may be off. Directions have an error of their own, of which 0.3 adds a twentieth.
OFF = {Coordinates: 0.1, Directions: 0.3}
AGAIN = 6  # first word of the key's path for the draws of slopes
FAR = 2**40  # steps on, whose directions are asked where a step has too few


@dataclass(frozen=True)
class Asker:
    """Evaluates queries of a step anew, one at a time, as those of its plan were.

    Attributes:
        base: The step's.
        serves: Which evaluator serves a query.
        begun: What evaluators have begun, by their identity.
    """

    base: Base
    serves: Callable[[Perturbation], Evaluator]
    begun: dict[int, Changes]

    def __call__(self, query: Perturbation, factor: float) -> float:
        """The mean change of a query whose step has another length, over that factor; NaN where it fails."""
        far = factor > 1
        moved, factor = scaled(self.base.problem.parameters, query, factor)
        if factor == 0:  # lost in the rounding of the weight
            return float("nan")
        problem, losses, evaluator = self.base.problem, self.base.losses, self.serves(query)
        problem.tally.queries += 1
        try:
            if id(evaluator) not in self.begun:
                self.begun[id(evaluator)] = evaluator.begin(problem, losses)
            return float(mean_changes(losses, self.begun[id(evaluator)](moved))[0]) / factor
        except BudgetError:
            raise
        except Exception:
            if not far:  # twice of mu may be more than the objective bears
                raise
            return float("nan")

    def slopes(self, plan: Perturbations, numbers: Tensor, factor: float) -> Tensor:
        """Of rows of `Perturbations.slopes`, `(slopes, queries of one)`: see `differenced`."""
        found = [[self(plan.chunk(n, n + 1), factor) for n in row] for row in numbers.tolist()]
        return differenced(torch.tensor(found, dtype=torch.float64))


def scaled(parameters: Parameters, query: Perturbation, factor: float) -> tuple[Perturbation, float]:
    """A single query with a step of another length, and by which factor the weights' floats let it move."""
    if isinstance(query, Directions):
        return Directions(query.steps * factor), factor
    steps = parameters.steps(query.indices, factor * float(query.steps)).to(query.steps)
    return Coordinates(query.indices, steps), float(steps) / float(query.steps)


def differenced(changes: Tensor) -> Tensor:
    """Changes `(slopes, queries of one)` as one number each: half the difference of those with both signs."""
    return changes[:, 0] if changes.shape[1] == 1 else (changes[:, 0] - changes[:, 1]) / 2


def noise_of(base: Base) -> Tensor:
    """How far the mean loss is off when the base is evaluated once more."""
    queries = Coordinates(torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    base.problem.tally.queries += 1
    changes = Loop().begin(base.problem, base.losses)(queries)[0, base.survived]
    return changes[torch.isfinite(changes)].double().sum().abs() / len(changes)


def reordered(base: Base) -> float:
    """How far the mean loss may be off by kernels that add up in another order each time."""
    dtypes = (base.losses.dtype, *(tensor.dtype for tensor in base.problem.parameters.tensors))
    return ROUNDING * max(torch.finfo(dtype).eps for dtype in dtypes) * float(base.loss().abs())


def doubt_about(
    ask: Asker,
    plan: Perturbations,
    difference: Tensor,
    valid: Tensor,
    key: Key,
    anew: Callable[[Key], Perturbations],
) -> Doubt | None:
    """Ask some queries again at half of mu; where they are off, more of them, and at twice of mu.

    Args:
        ask: Evaluates them.
        plan: The queries of the step.
        difference: `(queries,)`, what they changed.
        valid: `(queries,)` bool, False where one was dropped.
        key: Of the step.
        anew: Plans the queries of another step, for directions where this one has too few to judge by.

    Returns:
        The doubt about the kind of queries whose slopes are off most, None where none are by too much.
    """
    worst: Doubt | None = None
    for kind, numbers in enumerate(plan.slopes()):
        numbers = numbers[valid[numbers].all(dim=1)]
        own = differenced(difference[numbers]) if len(numbers) else torch.zeros(0)
        if not own.any():
            continue
        draws = _draws(own, key.generator(AGAIN, kind))
        asked: dict[int, float] = {}
        if _sampled(ask, plan, numbers, own, draws[:ASKED], asked).half <= DOUBTFUL:
            continue
        example = plan.chunk(int(numbers[0, 0]), int(numbers[0, 0]) + 1)
        if len(own) < FURTHER and isinstance(example, Directions):
            doubt = _of_more(ask, plan, numbers, own, anew(key.at(key.step + FAR)), kind)
        else:
            doubt = _sampled(ask, plan, numbers, own, draws, asked, further=True)
        if doubt.half > OFF[type(example)] and (worst is None or doubt.half > worst.half):
            worst = doubt
    return worst


def _draws(own: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of slopes, in turn one drawn alike and one by the square of its change; all where few."""
    if len(own) <= ASKED:
        return torch.arange(len(own))
    alike = torch.randint(len(own), (FURTHER // 2,), generator=generator)
    heights = own.double().square().cumsum(0)
    places = torch.rand(FURTHER // 2, generator=generator, dtype=torch.float64) * heights[-1]
    by_size = torch.searchsorted(heights, places).clamp(max=len(own) - 1)
    return torch.stack([alike, by_size], dim=1).flatten()


def _sampled(
    ask: Asker,
    plan: Perturbations,
    numbers: Tensor,
    own: Tensor,
    draws: Tensor,
    asked: dict[int, float],
    *,
    further: bool = False,
) -> Doubt:
    """Judge some slopes; what is asked at half of mu is noted, for more to be judged with it."""
    drawn = draws.tolist()
    for draw in drawn:
        if draw not in asked:
            asked[draw] = float(ask.slopes(plan, numbers[draw][None], 0.5))
    half = torch.tensor([asked[draw] for draw in drawn], dtype=torch.float64)
    twice: Mapping[int, float] = {}
    if further:
        twice = {draw: float(ask.slopes(plan, numbers[draw][None], 2.0)) for draw in dict.fromkeys(drawn)}
    size = None if len(own) <= ASKED else float(own.double().square().mean().sqrt())
    far = torch.tensor([twice[draw] for draw in drawn], dtype=torch.float64) if further else None
    return doubt_of(own[draws], half, far, size)


def _of_more(
    ask: Asker, plan: Perturbations, numbers: Tensor, own: Tensor, other: Perturbations, kind: int
) -> Doubt:
    """Judge a step's few directions with those of another: one alone may have a slope near zero by chance."""
    more = other.slopes()[kind][: FURTHER - len(own)]
    found = []
    for factor, known in ((1.0, own.double()), (0.5, None), (2.0, None)):
        first = ask.slopes(plan, numbers, factor) if known is None else known
        found.append(torch.cat([first, ask.slopes(other, more, factor)]))
    return doubt_of(*found)
