"""Figures of `python -m benchmarks budget`: what the command makes of a budget, over tuned first order."""

from __future__ import annotations

from statistics import median

from benchmarks.budget.report import headline, parts, trainings

SHARES = {"20": 0.2, "05": 0.05}  # mark -> of first order's rows
NAMES = {"all": "", "held out": ".held-out"}  # part of the problems -> what its figures' names end with


def figures() -> dict[str, float]:
    """Median, worst and share above 1.3 over the problems with their intervals, and the regret; by name."""
    values = {}
    for mark, share in SHARES.items():
        by_part = parts(trainings(share))
        for part, ending in NAMES.items():
            if part not in by_part:
                continue
            name, found = f"command.{mark}{ending}", by_part[part]
            values |= {f"{name}.{key}".rstrip("."): value for key, value in headline(found).items()}
            regrets = [one["regret"] for one in found if one["regret"] is not None]
            values |= {f"{name}.regret": median(regrets)} if regrets else {}
            values[f"{name}.trainings"] = len(found)
    return values
