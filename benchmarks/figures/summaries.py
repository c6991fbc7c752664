"""How values of many problems and seeds are summed up: medians, quartiles, bootstrap intervals, families."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np

from benchmarks.rows.families import by_family

DRAWS = 10_000  # of a bootstrap
Problems = Mapping[str, Sequence[float]]  # problem -> a value for each seed
Average = Callable[[Sequence[float]], float]


def middle(problems: Problems, over_seeds: Average = median) -> float:
    """The median over problems of the median (or mean) over seeds."""
    return median(over_seeds(values) for values in problems.values())


def families(problems: Problems) -> dict[str, list[float]]:
    """Medians over seeds of problems, those that are variants of one simulator together."""
    return by_family({name: median(values) for name, values in problems.items()})


def quartiles(problems: Problems, over_seeds: Average = median) -> tuple[float, float]:
    """Over problems, of medians (or means) over seeds."""
    low, high = np.percentile([over_seeds(values) for values in problems.values()], [25, 75])
    return float(low), float(high)


def interval(problems: Problems, over_seeds: Average = median) -> tuple[float, float]:
    """95 % of `middle`, by a bootstrap of two stages: problems are drawn anew, and their seeds."""
    draw, seeds = np.random.default_rng(0), [np.asarray(values, dtype=float) for values in problems.values()]
    average = np.median if over_seeds is median else np.mean
    drawn = [[average(draw.choice(values, (DRAWS, len(values))), axis=1)] for values in seeds]
    table = np.concatenate(drawn)  # (problems, DRAWS): of drawn seeds
    which = draw.integers(len(seeds), size=(len(seeds), DRAWS))
    low, high = np.percentile(np.median(np.take_along_axis(table, which, 0), axis=0), [2.5, 97.5])
    return float(low), float(high)


def summary(name: str, problems: Problems, over_seeds: Average = median) -> dict[str, float]:
    """The figures of values by problem and seed, under names that begin with one name."""
    (low, high), (least, most) = quartiles(problems, over_seeds), interval(problems, over_seeds)
    ends = sorted(over_seeds(values) for values in problems.values())
    return {
        name: middle(problems, over_seeds),
        f"{name}.quartile.low": low,
        f"{name}.quartile.high": high,
        f"{name}.low": least,
        f"{name}.high": most,
        f"{name}.problems": len(problems),
        f"{name}.trainings": sum(map(len, problems.values())),
        f"{name}.best": ends[0],
        f"{name}.worst": ends[-1],
        f"{name}.worst.seed": max(max(values) for values in problems.values()),
    }
