"""`FAMILY`: which problems are variants of one simulator, which count as one; intervals that know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

DRAWS = 2_000  # of a bootstrap
FAMILY = {"double-pendulum-wall": "double-pendulum", "fitzhugh-nagumo-noise": "fitzhugh-nagumo"}
FAMILY |= {"fitzhugh-nagumo-failing": "fitzhugh-nagumo", "mixed-units": "lorenz-96"}
FAMILY |= {"brusselator-20k": "brusselator", "ks-3k": "ks-26-8", "ks-3k-noise": "ks-26-8"}
FAMILY |= dict.fromkeys(("wake-30k", "wake-30k-unroll-16", "wake-260k", "wake-32x64"), "wake-1k")


def by_family(ends: Mapping[str, float]) -> dict[str, list[float]]:
    """The numbers of problems, those of variants of one simulator together.

    Args:
        ends: a number for each problem.
    """
    together: dict[str, list[float]] = {}
    for name, end in ends.items():
        together.setdefault(FAMILY.get(name, name), []).append(end)
    return together


def spread(problems: Mapping[str, Sequence[float]], above: float, draws: int = DRAWS) -> dict[str, float]:
    """95 % of three numbers by a bootstrap that draws families, of each its problems, and of these the seeds.

    The numbers are the median over problems of medians over seeds, the worst of these, and the share of them
    that lies above a bound.

    Args:
        problems: a number for each problem and seed.
        above: the bound.
        draws: how many.

    Returns:
        "low" and "high" of the median, "worst.low" and "worst.high", "above.low" and "above.high".
    """
    draw, found = np.random.default_rng(0), []
    families = list(by_family({name: index for index, name in enumerate(problems)}).values())
    seeds = [[float(value) for value in values] for values in problems.values()]
    for _ in range(draws):
        drawn = [families[which] for which in draw.integers(len(families), size=len(families))]
        names = [
            int(family[which]) for family in drawn for which in draw.integers(len(family), size=len(family))
        ]
        ends: list[float] = []
        for values in (seeds[name] for name in names):
            which = draw.integers(len(values), size=len(values)).tolist()
            ends.append(median([values[place] for place in which]))
        found.append((median(ends), max(ends), sum(end > above for end in ends) / len(ends)))
    low, high = np.percentile(found, [2.5, 97.5], axis=0).tolist()
    return {
        f"{name}{side}": value
        for side, values in (("low", low), ("high", high))
        for name, value in zip(("", "worst.", "above."), values, strict=True)
    }
