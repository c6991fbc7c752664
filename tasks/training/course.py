"""`Course`: how many steps a training takes, and how far it is: fewer where time or rows run out before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

LATEST, FEWEST = 10, 3  # steps whose median is the pace, at most and at least
LATE = 1.1  # times what is left: where the steps that are left take more, they become fewer


class Course:
    """The steps of a training, of which a budget leaves fewer where they take more of it than was thought.

    What is decided is in `state_dict`, so that a training goes on with it whatever the clock says then.

    Args:
        steps: As planned.
        seconds: In which they should end; None for no limit.
        rows_left: Gives the rows that boxes may still run for them; None for no limit.

    Attributes:
        steps: As they are now.
    """

    def __init__(
        self, steps: int, seconds: float | None = None, rows_left: Callable[[], int] | None = None
    ) -> None:
        self.steps, self._seconds, self._rows_left = steps, seconds, rows_left
        self._since, self._angle = 0, 0.0  # the step of the last decision, and the schedule's angle there
        self._ends, self._spent = deque[float](maxlen=LATEST + 1), deque[int](maxlen=LATEST + 1)
        self._most = 0  # rows that a step took, but the first

    @property
    def watches_time(self) -> bool:
        """Whether there is a limit in time."""
        return self._seconds is not None

    def angle(self, step: int) -> float:
        """How far a schedule is before a step, from 0 to pi; it has no jump where steps become fewer."""
        return self._angle + (math.pi - self._angle) * (step - self._since) / (self.steps - self._since)

    def is_cut(self, step: int, seconds: float) -> bool:
        """Whether there are fewer steps from here on.

        Args:
            step: How many are done.
            seconds: What they took, in earlier processes too.
        """
        self._ends.append(seconds)
        more = math.inf if self._seconds is None else self._more(step, self._seconds - seconds, self._ends)
        if self._rows_left is not None:
            left = self._rows_left()
            self._spent.append(-left)
            if len(self._spent) > 1 and step > 1:  # in the first one there are most checks
                self._most = max(self._most, self._spent[-1] - self._spent[-2])
            more = min(more, self._more(step, left, self._spent) if left >= max(1, self._most) else 0)
        if step + more >= self.steps:
            return False
        self._angle, self._since = self.angle(step), step
        self.steps = step + int(more)
        return True

    def _more(self, step: int, left: float, marks: Sequence[float]) -> float:
        """The steps that what is left of a budget is enough for, at the pace of the last ones.

        Args:
            step: How many are done.
            left: Of the budget.
            marks: What the budget had given behind each of the last steps.
        """
        each = [later - before for before, later in pairwise(marks)]
        if left <= 0:
            return 0
        if len(each) < FEWEST or (self.steps - step) * median(each) <= LATE * left:
            return math.inf
        return max(1, int(left / (LATE * median(each))))

    def state_dict(self) -> dict[str, Any]:
        """What was decided, the limit in time, and the most rows of a step."""
        decided = {"steps": self.steps, "since": self._since, "angle": self._angle}
        return {**decided, "most": self._most, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was decided."""
        self.steps, self._since, self._angle = state["steps"], state["since"], state["angle"]
        self._most, self._seconds = state["most"], state["seconds"]
