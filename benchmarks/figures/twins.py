"""Figures of twins below what learns: errors of trainings with a twin over those without."""

from __future__ import annotations

from benchmarks.figures.measured import read
from benchmarks.figures.summaries import summary
from benchmarks.rows.twins import DEFAULT, USUAL


def figures() -> dict[str, float]:
    """Figures whose names begin with "twins, " and what is put under the default; ".better" counts gains."""
    values, runs = {}, read("twins.json")["runs"]
    done = {name: [run for run in seeds.values() if {*USUAL} <= {*run}] for name, seeds in runs.items()}
    for label in USUAL[1:]:
        over = {
            name: [run[label]["ratio"] / run[DEFAULT]["ratio"] for run in several]
            for name, several in done.items()
            if several
        }
        values |= summary(f"twins, {label}", over)
        values[f"twins, {label}.better"] = sum(ratio < 1 for ratios in over.values() for ratio in ratios)
    return values
