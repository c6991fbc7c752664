"""`Course`: the steps of a training, and its progress: fewer steps where time or rows run out before.

The first steps learn the most and are slow. Where time cut a training by their pace, and later steps are
faster, it gets steps back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

LATEST, FEWEST = 10, 3  # steps whose rows or seconds are the pace, and the fewest
CHECKED = 4  # times the rows that a step needs: what one with a check may take
LATE = 1.1  # times the seconds that are left: where the steps that are left take more, they become fewer
EARLY = 1.5  # times the steps left: where seconds are enough for so many, they become more; decision 229
GAINED = 0.5  # of the steps: where seconds are enough for so many beyond them, a plan by time grows; 229


class Course:
    """The steps of a training; a budget leaves fewer of them where they take more than was planned.

    Steps that a limit in time took come back where later steps are faster, up to the plan. Where the plan
    itself followed from the time, and took far too few, there become more.

    Decisions are in `state_dict`, so that a training goes on with them whatever the clock says then.

    Args:
        steps: The planned steps.
        seconds: The seconds in which they should end; None for no limit.
        rows_left: Gives the rows that boxes may still run for them; None for no limit.
        checks: Gives the queries so far that a step can do without; None where it needs all of its rows.
        grows: Whether steps may become more than were planned, which followed from the time.

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
        *,
        grows: bool = False,
    ) -> None:
        self.steps, self._seconds, self._rows_left, self._checks = steps, seconds, rows_left, checks
        self._planned, self._grows = steps, grows
        self.is_tight, self._checked, self._needed = False, 0, 0  # checks so far; rows of a step without
        self._since, self._angle = 0, 0.0  # the step of the last decision, and the schedule's angle there
        self._ends, self._row_marks = list[float](), deque[int](maxlen=LATEST + 1)
        self._most = 0  # rows that a step took, but the first

    @property
    def watches_time(self) -> bool:
        """True if there is a limit in time."""
        return self._seconds is not None

    def angle(self, step: int) -> float:
        """Return a schedule's progress before a step, from 0 to pi; fewer steps make no jump in it."""
        return self._angle + (math.pi - self._angle) * (step - self._since) / (self.steps - self._since)

    def changes(self, step: int, seconds: float) -> bool:
        """Say whether there are fewer or more steps from here on.

        Args:
            step: How many steps are done.
            seconds: The time that they took, in earlier processes too.
        """
        self._ends.append(seconds)
        more, grown = self.steps - step, 0
        steps_left = more
        if self._seconds is not None and (steps_left or self._grows):
            seconds_left = self._seconds - seconds
            enough = _enough(seconds_left, _mean_pace(self._ends))
            is_late, was_cut = LATE * enough < steps_left, self.steps < self._planned
            if seconds_left <= 0:
                more = 0
            elif steps_left and (is_late or (was_cut and EARLY * LATE * steps_left <= enough < math.inf)):
                more = max(1, int(min(enough / LATE, self._planned - step)))
            grown = self._grown(step, seconds, min(enough, _enough(seconds_left, seconds / max(1, step))))
            more = max(more, grown)
        if self._rows_left is not None:
            more = min(more, self._by_rows(step))
        if more == steps_left:
            return False
        self._angle, self._since = self.angle(step), step
        self.steps = step + more
        if more == grown:  # the rate of a training that had been planned so long, else the rest hardly moves
            self._angle = math.pi * step / self.steps
        return True

    def _grown(self, step: int, seconds: float, enough: float) -> int:
        """Return the steps that are left of a plan that took far too few; 0 of any other.

        Args:
            step: How many steps are done.
            seconds: The time that they took.
            enough: The steps that the time left is enough for, by the slower of two paces: by the last steps,
                and by all of them, since the first ones are slow and some have bursts of computing in them.
        """
        known = step == self.steps or len(self._ends) > LATEST  # the first steps are not like the others
        if not self._grows or not step or seconds <= 0 or not known:
            return 0
        more = int(enough / LATE)
        if step + more - self.steps < GAINED * self.steps:
            return 0
        self._planned = max(self._planned, step + more)
        return more

    def _by_rows(self, step: int) -> int:
        """The steps that the rows left are enough for; whether the next one has rows for checks."""
        assert self._rows_left is not None
        rows_left = self._rows_left()
        self._row_marks.append(-rows_left)
        self._note_rows(step)
        self.is_tight = self._checks is not None and rows_left < max(self._most, CHECKED * self._needed)
        needed = self._most if self._checks is None else self._needed
        if rows_left < max(1, needed):
            return 0
        return max(1, int(min(_enough(rows_left, _pace(self._row_marks)), self._planned)))

    def _note_rows(self, step: int) -> None:
        """Note what the last step took, and would have taken without its checks."""
        checked, self._checked = self._checked, 0 if self._checks is None else self._checks()
        if len(self._row_marks) > 1:
            took = self._row_marks[-1] - self._row_marks[-2]
            self._needed = max(self._needed, math.ceil(took / (1 + self._checked - checked)))
            if step > 1:  # in the first one there are most checks
                self._most = max(self._most, took)

    def state_dict(self) -> dict[str, Any]:
        """Save the decisions, the limit in time, and the rows of a step, at most and without checks."""
        decided = {"steps": self.steps, "since": self._since, "angle": self._angle, "tight": self.is_tight}
        decided["planned"] = self._planned
        rows = {"most": self._most, "needed": self._needed, "checked": self._checked}
        return {**decided, **rows, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was decided."""
        self.steps, self._since, self._angle = state["steps"], state["since"], state["angle"]
        self._planned = state["planned"]
        self._most, self._needed, self._checked = state["most"], state["needed"], state["checked"]
        self.is_tight, self._seconds = state["tight"], state["seconds"]


def _pace(marks: Sequence[float]) -> float | None:
    """The seconds of a step, the median of the last ones; None after fewer than three."""
    intervals = [later - earlier for earlier, later in pairwise(marks)]
    return None if len(intervals) < FEWEST else median(intervals)


def _mean_pace(ends: Sequence[float]) -> float | None:
    """The seconds of a step: the mean over the later half but for the longest; None after fewer than three.

    Steps come in bursts, with lessons of models and of a surrogate: the median of a few is now one, now ten
    times the mean. The longest may be one that hung.
    """
    if len(ends) <= FEWEST:
        return None
    later = ends[-1 - max(LATEST, len(ends) // 2) :]
    intervals = [after - before for before, after in pairwise(later)]
    return (sum(intervals) - max(intervals)) / (len(intervals) - 1)


def _enough(left: float, pace: float | None) -> float:
    """The steps that a budget is enough for; infinite where the pace is not known."""
    return math.inf if pace is None or pace <= 0 else max(0.0, left) / pace
