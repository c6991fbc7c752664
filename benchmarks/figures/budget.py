"""Figures of the command: what `blackbox run PROBLEM --rows N` ends at, of `benchmarks/results/budget`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from benchmarks.budget.report import trainings
from benchmarks.figures.rows import SHARES
from benchmarks.figures.summaries import middle

FIRST_ORDER = "first order, tuned"  # at the same rows
Training = Mapping[str, Any]


def figures() -> dict[str, float]:
    """Figures of the command at each share of first order's rows, by name."""
    return {
        name: value
        for mark, share in SHARES.items()
        for name, value in _at(f"command.{mark}", trainings(share)).items()
    }


def _at(name: str, measured: Sequence[Training]) -> dict[str, float]:
    """The command's error, its regret against the best other way, first order at the same rows, its time."""
    ends = {
        problem: median(seeds) for problem, seeds in _by_problem(measured, lambda one: one["own"]).items()
    }
    kinds = {one["problem"]: one["kind"] for one in measured}
    beside = [one for one in measured if FIRST_ORDER in one]
    equal = _by_problem(beside, lambda one: one["own"] / one[FIRST_ORDER])
    regrets = sorted(one["regret"] for one in measured if one["regret"] is not None)
    return {
        name: median(ends.values()),
        **{
            f"{name}.{kind}s": median(end for problem, end in ends.items() if kinds[problem] == kind)
            for kind in ("correction", "controller")
        },
        f"{name}.problems": len(ends),
        f"{name}.below": sum(end <= 1 for end in ends.values()),
        f"{name}.worst": max(ends.values()),
        f"{name}.first order": middle(_by_problem(beside, lambda one: one[FIRST_ORDER])),
        f"{name}.equal.problems": len(equal),
        f"{name}.equal.above": sum(median(ratios) > 1 for ratios in equal.values()),
        f"{name}.regret": median(regrets),
        f"{name}.regret.nine": quantiles(regrets, n=10, method="inclusive")[-1],
        f"{name}.regret.worst": regrets[-1],
        f"{name}.seconds": median(one["time"] for one in measured),
        f"{name}.even": median(one["even"] for one in measured),
        f"{name}.in training": median(one["in training"] for one in measured),
    }


def _by_problem(measured: Sequence[Training], value: Callable[[Training], float]) -> dict[str, list[float]]:
    """A value of each training, by problem."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in measured:
        values[one["problem"]].append(value(one))
    return dict(values)
