"""How benchmarks measure: contenders in turn in one process, medians, and a note of where it ran."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from tasks.runs.machine import machine, versions

RESULTS = Path(__file__).parent / "results"


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each run over `rounds` rounds, after one round to warm up.

    What disturbs the machine disturbs all of them, so ratios hold where single times do not.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            began = perf_counter()
            run()
            if round_:
                times[name].append(perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def write(name: str, results: Mapping[str, Any]) -> None:
    """Write `benchmarks/results/NAME.json`, with machine, versions and command."""
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"command": command, "machine": machine(), "versions": versions(), **results}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
