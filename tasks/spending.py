"""What a run does with a budget of rows: it chooses its batches, steps, validations and replays.

An expensive box is thought of in rows. Where a budget is given and no number of steps, a run takes a quarter
of the usual batch, for at equal rows small batches with more steps end at a lower error; it replays recorded
answers as often as they are trusted, and buys no probes where tangents are not; and it takes as many steps as
the budget allows, validation and test included. What is set by hand stays; and all of a problem with presets,
whose settings go with each other.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from blackbox.words import counted
from tasks import cost
from tasks.method import Method
from tasks.problem import Problem

C = TypeVar("C")
SMALLER = 4  # times as small as usual is the batch
VALIDATIONS, SHARE = 12, 0.2  # of a training at most, and of the budget; two at least
KEPT = 0.05  # of the budget is kept back, for rows that a kill makes the run ask for again
MOST_STEPS = 2**40
CHOSEN = ("steps", "validate_every")  # by the run, which knows what a row of data costs


def spends(kind: type[Problem], config: C, by_hand: Collection[str]) -> tuple[C, tuple[str, ...]]:
    """The settings of a run that is given rows: those that can be chosen at once, and names of the others.

    Args:
        kind: The problem's class.
        config: Its settings.
        by_hand: Names of those that the user set; without `rows` or with `steps` nothing is chosen.
    """
    settings: Any = config
    if kind.presets or getattr(settings, "rows", None) is None or "steps" in by_hand:
        return config, ()
    changed: dict[str, Any] = {"batch": max(1, settings.batch // SMALLER), "replays": None, "max_rows": 1.0}
    changed = {name: value for name, value in changed.items() if name not in by_hand}
    return replace(settings, **changed), tuple(name for name in CHOSEN if name not in by_hand)


def steps_within(
    problem: Problem, methods: Mapping[str, Method], seeds: int, made: int, chosen: Collection[str]
) -> dict[str, int]:
    """As many steps as the budget allows.

    Args:
        problem: With its settings, a budget among them.
        methods: That will be trained.
        seeds: How many trainings of each.
        made: Rows that were run to make the data.
        chosen: Names of the settings that are chosen, `steps` among them.

    Returns:
        The settings of `chosen`; as they are where the rows of a problem are not known beforehand or steps
        take none, and one step where the budget has no room for more, which the plan then refuses. All checks
        of queries have room. A validation or test of the problem's own is supposed to take each row of its
        data once, as the objective does.
    """
    config, each = problem.config, cost.rows_of_objective(problem)
    as_they_are = {name: getattr(config, name) for name in chosen}
    if isinstance(each, Exception) or problem.cost(seeds) is not None:
        return as_they_are
    first = cost.planned(problem, methods, each, supposing=True)
    if first.validation is None or first.test is None or None in first.costs.values():
        return as_they_are
    if not any(first.rows.values()):
        return as_they_are
    budget = int((1 - KEPT) * config.rows) - made - cost.TRIES * each
    validations = 1 + -(-config.steps // config.validate_every)
    once = seeds * len(methods) * first.validation / validations
    wanted = int(min(VALIDATIONS, max(2, SHARE * budget / once if once else VALIDATIONS)))

    def at(steps: int) -> dict[str, int]:
        found = {"steps": steps, "validate_every": -(-steps // (wanted - 1))}
        return {name: found[name] for name in chosen}

    def fits(steps: int) -> bool:
        own = copy.copy(problem)
        own.config = replace(config, **at(steps))
        return seeds * cost.planned(own, methods, each, supposing=True).with_checks <= budget

    low, high = 1, 2
    while high < MOST_STEPS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return at(low)


def told(problem: Problem, methods: Collection[str]) -> str:
    """What was chosen, in a sentence."""
    config = problem.config
    again = {0: "", None: ", and replays as far as they are trusted"}.get(
        config.replays, f", each followed by {counted(config.replays or 0, 'replay')}"
    )
    learned = "tangents" in methods or "secant" in methods
    replayed = again if learned or config.replays else ""
    return (
        f"For {counted(config.rows, 'row')}: batches of {config.batch}, {counted(config.steps, 'step')}"
        f"{replayed}; validation every {counted(config.validate_every, 'step')}."
    )
