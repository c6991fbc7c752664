"""`Course`: the steps of a training, and its progress: fewer steps where time or rows run out before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

LATEST, FEWEST = 10, 3  # steps whose median is the pace, at most and at least
CHECKED = 4  # times the rows that a step needs: what one with a check may take
LATE = 1.1  # times the seconds that are left: where the steps that are left take more, they become fewer


class Course:
    """The steps of a training; a budget leaves fewer of them where they take more than was planned.

    Decisions are in `state_dict`, so that a training goes on with them whatever the clock says then.

    Args:
        steps: The planned steps.
        seconds: The seconds in which they should end; None for no limit.
        rows_left: Gives the rows that boxes may still run for them; None for no limit.
        checks: Gives the queries so far that a step can do without; None where it needs all of its rows.

    Attributes:
        steps: The present number of steps.
        is_tight: Whether the next step has rows for its own needs only, and none for a check.
    """

    def __init__(
        self,
        steps: int,
        seconds: float | None = None,
        rows_left: Callable[[], int] | None = None,
        checks: Callable[[], int] | None = None,
    ) -> None:
        self.steps, self._seconds, self._rows_left, self._checks = steps, seconds, rows_left, checks
        self.is_tight, self._checked, self._needed = False, 0, 0  # checks so far; rows of a step without
        self._since, self._angle = 0, 0.0  # the step of the last decision, and the schedule's angle there
        self._ends, self._spent = deque[float](maxlen=LATEST + 1), deque[int](maxlen=LATEST + 1)
        self._most = 0  # rows that a step took, but the first

    @property
    def watches_time(self) -> bool:
        """True if there is a limit in time."""
        return self._seconds is not None

    def angle(self, step: int) -> float:
        """Return a schedule's progress before a step, from 0 to pi; fewer steps make no jump in it."""
        return self._angle + (math.pi - self._angle) * (step - self._since) / (self.steps - self._since)

    def is_cut(self, step: int, seconds: float) -> bool:
        """Say whether there are fewer steps from here on.

        Args:
            step: How many steps are done.
            seconds: The time that they took, in earlier processes too.
        """
        self._ends.append(seconds)
        more = math.inf
        if self._seconds is not None:
            more = self._more(step, self._seconds - seconds, self._ends, LATE)
        if self._rows_left is not None:
            left = self._rows_left()
            self._spent.append(-left)
            self._note_rows(step)
            self.is_tight = self._checks is not None and left < max(self._most, CHECKED * self._needed)
            needed = self._most if self._checks is None else self._needed
            more = min(more, self._more(step, left, self._spent, 1.0) if left >= max(1, needed) else 0)
        if step + more >= self.steps:
            return False
        self._angle, self._since = self.angle(step), step
        self.steps = step + int(more)
        return True

    def _note_rows(self, step: int) -> None:
        """Note what the last step took, and would have taken without its checks."""
        checked, self._checked = self._checked, 0 if self._checks is None else self._checks()
        if len(self._spent) > 1:
            took = self._spent[-1] - self._spent[-2]
            self._needed = max(self._needed, math.ceil(took / (1 + self._checked - checked)))
            if step > 1:  # in the first one there are most checks
                self._most = max(self._most, took)

    def _more(self, step: int, left: float, marks: Sequence[float], late: float) -> float:
        """The steps that the rest of a budget is enough for, at the pace of the last ones.

        Args:
            step: How many steps are done.
            left: The rest of the budget.
            marks: The part of the budget spent after each of the last steps.
            late: How many times the rest the remaining steps may take before they become fewer.
        """
        each = [later - earlier for earlier, later in pairwise(marks)]
        if left <= 0:
            return 0
        if len(each) < FEWEST or (self.steps - step) * median(each) <= late * left:
            return math.inf
        return max(1, int(left / (late * median(each))))

    def state_dict(self) -> dict[str, Any]:
        """Save the decisions, the limit in time, and the rows of a step, at most and without checks."""
        decided = {"steps": self.steps, "since": self._since, "angle": self._angle, "tight": self.is_tight}
        rows = {"most": self._most, "needed": self._needed, "checked": self._checked}
        return {**decided, **rows, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was decided."""
        self.steps, self._since, self._angle = state["steps"], state["since"], state["angle"]
        self._most, self._needed, self._checked = state["most"], state["needed"], state["checked"]
        self.is_tight, self._seconds = state["tight"], state["seconds"]
