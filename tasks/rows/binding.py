"""`Bound`: what a run makes of a problem: an object of its class whose rows are counted, kept and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from tasks.problem.problem import Problem, Surroundings
from tasks.problem.silence import Silence
from tasks.rows.run_ledger import RunLedger


@dataclass(frozen=True)
class Bound:
    """A problem in the hands of a run, which alone asks it for box, data and answers. `Bound.of` makes it.

    Attributes:
        problem: An object of the user's class that belongs to the run; what was planned stays as it is.
        ledger: The rows that its boxes run, and those of others that make its data.
        begun: When it was made, by `perf_counter`.
    """

    problem: Problem
    ledger: RunLedger
    begun: float = field(default_factory=lambda: perf_counter())

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken in this process."""
        return perf_counter() - self.begun

    @classmethod
    def of(cls, problem: Problem, progress: Silence | None = None) -> Bound:
        """A problem as it was planned, bound: nothing of it is made yet."""
        ledger = RunLedger(getattr(problem.config, "rows", None))
        display = Silence() if progress is None else progress
        return cls(problem.with_surroundings(Surroundings(display, ledger.making)), ledger)

    def check(self) -> None:
        """Have the problem refuse settings that do not go with data or network, before its boxes are made."""
        problem = self.problem
        with self.ledger.unwritten(lambda: list(problem.boxes.values()) if "box" in vars(problem) else []):
            problem.check()

    def written(self) -> AbstractContextManager[None]:
        """A block in which the rows of its boxes are written down as they run, and bounded."""
        return self.ledger.written(self.problem)

    def bound(self) -> None:
        """Set its boxes up where nothing is written down, for a look ahead."""
        self.ledger.bound(self.problem)

    def unbound(self) -> None:
        """Take the run's bound off its boxes, behind all that the run asks."""
        self.ledger.unbound(self.problem)

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Take over settings that follow from the budget, where data hold this very problem by now."""
        self.problem.config = replace(self.problem.config, **settings)
