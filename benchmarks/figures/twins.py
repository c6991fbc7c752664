"""Figures of twins below what learns: errors of trainings with a twin over those without."""

from __future__ import annotations

from typing import Any

from benchmarks.figures.measured import read
from benchmarks.figures.summaries import summary
from benchmarks.rows.twins import DEFAULT, USUAL


def figures() -> dict[str, float]:
    """Figures named "twins", what is put under the default, and the share of the rows if above .05."""
    return {
        f"twins, {name}": value
        for share, runs in read("twins.json")["runs"].items()
        for name, value in _of_share("" if share == "0.05" else f", {share}", runs).items()
    }


def _of_share(suffix: str, runs: dict[str, Any]) -> dict[str, float]:
    values = dict[str, float]()
    done = {name: [run for run in seeds.values() if {*USUAL} <= {*run}] for name, seeds in runs.items()}
    for label in USUAL[1:]:
        over = {
            name: [run[label]["ratio"] / run[DEFAULT]["ratio"] for run in several]
            for name, several in done.items()
            if several
        }
        if over:
            values |= summary(f"{label}{suffix}", over)
    return values
