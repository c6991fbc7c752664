"""Figures of the command: what `blackbox run PROBLEM --rows N` ends at, of `benchmarks/results/budget`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from benchmarks.budget.report import headline, parts, trainings, warned
from benchmarks.figures.rows import SHARES
from benchmarks.figures.summaries import middle

NAMES = {"all": "", "held out": ".held-out"}  # part of the problems -> what its figures' names end with
FIRST_ORDER = "first order, tuned"  # at the same rows
Training = Mapping[str, Any]


def figures() -> dict[str, float]:
    """Figures of the command at each share of first order's rows, of all problems and those held out."""
    values: dict[str, float] = {}
    for mark, share in SHARES.items():
        by_part = parts(trainings(share))
        for part, ending in NAMES.items():
            if part in by_part:
                name, found = f"command.{mark}{ending}", by_part[part]
                values |= _at(name, found)
                values |= {f"{name}.{key}".rstrip("."): value for key, value in headline(found).items()}
                for number, (count, bad) in warned(found).items():
                    values |= {f"{name}.warned.{number}": count, f"{name}.warned.{number}.bad": bad}
    return values


def _at(name: str, measured: Sequence[Training]) -> dict[str, float]:
    """The command's error, its regret against the best other way, first order at the same rows, its time."""
    ends = {
        problem: median(seeds) for problem, seeds in _by_problem(measured, lambda one: one["own"]).items()
    }
    kinds = {one["problem"]: one["kind"] for one in measured}
    beside = [one for one in measured if FIRST_ORDER in one]
    equal = _by_problem(beside, lambda one: one["own"] / one[FIRST_ORDER])
    rivalled = [one for one in measured if one["regret"] is not None]
    regrets = sorted(one["regret"] for one in rivalled)
    best = _by_problem(rivalled, lambda one: one["own"] / one["regret"])
    return {
        name: median(ends.values()),
        **{
            f"{name}.{kind}s": median(end for problem, end in ends.items() if kinds[problem] == kind)
            for kind in ("correction", "controller", "design")
            if kind in kinds.values()
        },
        f"{name}.below": sum(end <= 1 for end in ends.values()),
        f"{name}.first order": middle(_by_problem(beside, lambda one: one[FIRST_ORDER])),
        f"{name}.equal.problems": len(equal),
        f"{name}.equal.above": sum(median(ratios) > 1 for ratios in equal.values()),
        **(_regret(f"{name}.regret", regrets) | {f"{name}.best": middle(best)} if regrets else {}),
        f"{name}.seconds": median(one["time"] for one in measured),
        f"{name}.even": median(one["even"] for one in measured),
        f"{name}.even.most": max(one["even"] for one in measured),
        f"{name}.in training": median(one["in training"] for one in measured),
    }


def _regret(name: str, regrets: Sequence[float]) -> dict[str, float]:
    """The median, nine of ten and worst of sorted regrets."""
    nine = quantiles(regrets, n=10, method="inclusive")[-1] if len(regrets) > 1 else regrets[0]
    return {name: median(regrets), f"{name}.nine": nine, f"{name}.worst": regrets[-1]}


def _by_problem(measured: Sequence[Training], value: Callable[[Training], float]) -> dict[str, list[float]]:
    """A value of each training, by problem."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in measured:
        values[one["problem"]].append(value(one))
    return dict(values)
