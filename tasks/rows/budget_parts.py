"""The parts of a budget's rows and minutes for validation, test and training; decisions 187 and 188."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from blackbox import BlackBoxFunction, Budgeted
from tasks.problem.problem import Problem
from tasks.rows.stacks import stack
from zo.batches import count_rows, map_tensors

TESTED, FEW = 30, 1  # rows of training for one of the test, of which there are so many at least
# of the minutes are for checkpoints; seconds for the end, but no more than so much of all
LOST, END, AT_MOST = 0.05, 10.0, 0.15


def judges_by_windows(problem: Problem, chosen: Mapping[str, Any]) -> bool:
    """Say whether windows, judged before anything trains on them, validate a training, for no row.

    Args:
        problem: The problem; with presets, or a validation of its own, it validates as its class says.
        chosen: Settings that follow from a budget.
    """
    has_validation = type(problem).validate is not Problem.validate
    return "validate_every" in chosen and not problem.presets and not has_validation


def rows_of_test(problem: Problem, chosen: Mapping[str, Any]) -> int | None:
    """The rows of data in the test of a run whose steps follow from a budget; None for all rows.

    Args:
        problem: The problem; with presets, or a judgement of its own, it is tested as its class says.
        chosen: Settings that follow from the budget.
    """
    data, config = problem.data.test, problem.config
    has_judge = type(problem).judge is not Problem.judge
    if "steps" not in chosen or problem.presets or has_judge or data is None:
        return None
    rows = max(FEW, config.steps * config.batch // TESTED)
    return rows if rows < count_rows(data) else None


def shorten_test(problem: Problem, rows: int) -> None:
    """Leave the first rows of a problem's test data alone."""
    test = map_tensors(lambda tensor: tensor[:rows], problem.data.test)
    vars(problem)["data"] = replace(problem.data, test=test)


def seconds_left(minutes: float, spent: float) -> float:
    """Return the seconds left for trainings and tests, with some kept for checkpoints and report.

    Args:
        minutes: The minutes of the run.
        spent: Seconds that it has taken by now.
    """
    seconds = 60 * minutes
    return (1 - LOST) * seconds - min(END, AT_MOST * seconds) - spent


def rows_left(boxes: Sequence[BlackBoxFunction], reserve: int) -> int:
    """The rows that boxes may still run in a training.

    Args:
        boxes: At least one of them is bounded.
        reserve: Rows that are for what comes behind it.
    """
    budgets = [part for box in boxes for part in stack(box) if isinstance(part, Budgeted)]
    return min(budget.rows_left for budget in budgets) - reserve
