"""Which evaluator serves each parameter's queries best, and how many together: measured at a first step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox import BudgetError
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.fusing import Fusing
from zo.evaluators.timing import FASTER, FEW, Timing, Took
from zo.evaluators.trial import Candidates, Pair, Trial
from zo.perturbation import Coordinates, Directions

LOOK = 4  # variants of a pass that is tried first, and coordinates of a kind whose answers are compared
WIDTHS = (16, 64)  # that are tried then, until wider is no faster
STACKED = (4, 16)
HOPELESS = 3  # times the best so far, from which on wider is not tried
FEW_OF_EACH = 2  # entries of a parameter that is to be served by subtracting, whose changes must agree
SUBTRACTED = 0.02  # of the changes of a kind's coordinates, beyond which losses are too rounded to subtract


@dataclass(frozen=True)
class Choices:
    """What was found.

    Attributes:
        chosen: by the name of the parameter, "fused" among them.
        uncompiled: the same where nothing compiled is to be had.
        queries: perturbed objectives that it cost.
    """

    chosen: dict[str, Pair]
    uncompiled: dict[str, Pair]
    queries: int


class Chooser:
    """Measures the candidates at a step; see `Measured`.

    Args:
        trial: of the step.
    """

    def __init__(self, trial: Trial) -> None:
        self.at = trial

    def choices(self) -> Choices:
        """Time the candidates and choose."""
        fusing = Fusing(self.at)
        most = self.at.most // 2 if fusing.possible() else self.at.most
        for kind in range(len(self.at.kinds)):
            self._look(kind, most)
        timed = [kind for kind, cost in enumerate(self.at.costs) if cost]
        if any(self.at.subtracting):
            self._whole_network(timed, most)
        for kind in timed:
            self._widen(kind, most)
        plain = self._agreeing(self._best())
        chosen = dict(plain)
        if fusing.possible():
            chosen.update(fusing.faster(plain))
        return Choices(chosen, plain, self.at.timing.spent + self.at.timing.checks)

    def _look(self, kind: int, most: int) -> None:
        number = self.at.largest(kind)
        plain = self.at.difference(number, LOOK, most)
        if plain is None:
            return
        self.at.costs[kind]["difference", LOOK] = plain.seconds
        reused = self._tried(self.at.candidates.reuse, number, LOOK, most, calls=1)
        if reused is not None and self._agree(reused.changes, plain.changes):
            self.at.costs[kind]["reuse", 1] = reused.seconds
            self.at.subtracting[kind] = True

    def _whole_network(self, timed: list[int], most: int) -> None:
        """What runs the whole network whatever is moved: one measurement will do."""
        number = self.at.largest(timed[0])
        worst = max(min(self.at.costs[kind].values()) for kind in timed if self.at.subtracting[kind])
        looped = self.at.timing.each(self.at.candidates.loop, number, 1, most)
        if looped is not None:
            self.at.anywhere["loop", 1] = looped.seconds
        for width in STACKED:
            if width > self.at.room_stacked:
                break
            stacked = self._tried(self.at.candidates.stacked.fast, number, width, most)
            if stacked is None:
                break
            self.at.anywhere["stacked", width] = stacked.seconds
            if stacked.seconds > HOPELESS * worst:
                break
        of_stacked = [pair for pair in self.at.anywhere if pair[0] == "stacked"]
        best = min((self.at.anywhere[pair] for pair in of_stacked), default=worst)
        if best >= FASTER * worst or not self._stacked_serves(number):  # its check costs far more
            for pair in of_stacked:
                del self.at.anywhere[pair]

    def _tried(self, evaluator: Evaluator, number: int, width: int, most: int, calls: int = 2) -> Took | None:
        """As `Timing.each`; None too for one that cannot serve this objective, as `difference` can."""
        try:
            return self.at.timing.each(evaluator, number, width, most, calls)
        except BudgetError:
            raise
        except Exception:
            return None

    def _agree(self, found: Tensor, true: Tensor) -> bool:
        """Whether changes from subtracted losses are those of `difference`; of none that are zero."""
        alive = torch.isfinite(self.at.base)
        found, true = found[:, alive].mean(1), true[:, alive].mean(1)
        return bool(0 < true.norm()) and bool((found - true).norm() <= SUBTRACTED * true.norm())

    def _agreeing(self, best: dict[str, Pair]) -> dict[str, Pair]:
        """The same, but `difference` where subtracting would not do: each parameter is asked itself."""
        at, found = self.at, dict(best)
        fallback = self._best(("difference",))
        candidates = {
            "reuse": at.candidates.reuse,
            "loop": at.candidates.loop,
            "stacked": at.candidates.stacked.fast,
        }
        for number, (name, (own, _)) in enumerate(best.items()):
            if own not in candidates:
                continue
            queries = at.timing.queries(number, FEW_OF_EACH, at.timing.step)
            true = at.candidates.checked.changes(at.problem, queries, at.base)
            changes = candidates[own].changes(at.problem, queries, at.base)
            at.timing.checks += 2 * FEW_OF_EACH
            if not self._agree(changes, true):
                found[name] = fallback[name]
        return found

    def _stacked_serves(self, number: int) -> bool:
        still = torch.zeros(1, dtype=self.at.problem.parameters.dtype)
        query = Coordinates(torch.tensor([self.at.problem.parameters.starts[number]]), still)
        stacked = self.at.candidates.stacked
        return stacked.serving(self.at.problem, query) is stacked.fast

    def _widen(self, kind: int, most: int) -> None:
        cost, number = self.at.costs[kind], self.at.largest(kind)
        best = cost["difference", LOOK]
        for width in (1, *WIDTHS):
            took = self.at.difference(number, width, most)
            if took is None:
                return
            cost["difference", width] = took.seconds
            if width == 1 and took.seconds > FASTER * best:
                continue
            if width == 1 or took.seconds > FASTER * best:
                return
            best = took.seconds

    def _best(self, of: tuple[str, ...] = ("difference", "reuse", "loop", "stacked")) -> dict[str, Pair]:
        """For each parameter what costs least; where nothing was timed what `Difference` finds itself."""
        found: dict[str, Pair] = {}
        for kind, numbers in enumerate(self.at.kinds):
            for number in numbers:
                costs = {
                    pair: seconds for pair, seconds in self.at.seconds(kind, number).items() if pair[0] in of
                }
                best = ("difference", 0)
                for pair, seconds in costs.items():
                    if best not in costs or seconds < FASTER * costs[best]:
                        best = pair
                found[self.at.problem.parameters.names[number]] = best
        return found


def along_directions(
    candidates: Candidates, problem: Problem, directions: Directions, base: Tensor, most: int
) -> tuple[str, int]:
    """Who serves whole directions best: "stacked" in one pass, or "loop", one after the other.

    Args:
        candidates: to be timed; `stacked` serves.
        problem: of the step.
        directions: some of the step's.
        base: losses of the base, `(rows,)`.
        most: queries that it may cost.

    Returns:
        Its name, and the queries that it cost.
    """
    timing = Timing(problem, base, 0.0, waits=True)
    one, some = directions.part(0, 1), directions.part(0, min(FEW, len(directions) - 1))
    looped = timing.took(candidates.loop, one, most)
    stacked = timing.took(candidates.stacked.fast, some, most) if len(some) > 1 else None
    faster = looped is not None and stacked is not None and looped.seconds < FASTER * stacked.seconds
    return "loop" if faster else "stacked", timing.spent
