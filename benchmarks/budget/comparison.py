"""What `blackbox run --rows N` makes of a budget, beside the best of other ways at the same rows.

    python -m benchmarks budget --size ci                    one problem, few rows; written nowhere
    python -m benchmarks budget --size small                 problems of `rows`, a twentieth and a fifth
    python -m benchmarks budget --size small --problems double-pendulum --seeds 3 4 --shares 0.05

N is a share of the rows that first order takes as `tangents` benchmarks it, and all rows count: timed,
trained on, tested. Nothing is set by hand but what the problem declares, its learning rate. The other ways
are those of `python -m benchmarks rows --steps`, whose N is for training alone: weights are chosen and
settings tuned there on validation data that cost nothing.

Results go into `benchmarks/results/budget/PROBLEM.json` as they come; what is there is not measured again.
At the end `table.md` is written there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch

import tasks
from benchmarks import protocol
from benchmarks.budget.problem import Benchmarked, made
from benchmarks.budget.report import FOLDER, SHARES, write
from benchmarks.rows.report import BY_STEPS
from benchmarks.rows.training import train
from benchmarks.rows.ways import ALL_ROWS, AS_BENCHMARKED, Way
from benchmarks.tangents.problems import problems
from tasks.folder import atomic
from tasks.planning.plan import POPULATION

PROBLEMS = tuple(sorted(path.stem for path in BY_STEPS.glob("*.json")))
SEEDS = (3, 4)


def rows_of_first_order(name: str) -> int:
    """Rows of the box that first order takes, as it was measured."""
    runs = json.loads((BY_STEPS / f"{name}.json").read_text(encoding="utf-8"))["runs"]
    return next(run[AS_BENCHMARKED]["rows"] for run in runs.values() if AS_BENCHMARKED in run)


def seconds_of_first_order(name: str, seed: int) -> float:
    """Processor time of a training by first order with all of its rows, tuned, on this machine."""
    runs = json.loads((BY_STEPS / f"{name}.json").read_text(encoding="utf-8"))["runs"]
    tuned = runs[str(seed)][ALL_ROWS]
    return train(problems("small")[name](), Way(1.0, tuned["batch"], tuned["rate"]), seed)["seconds"]


def spend(name: str, rows: int, seed: int) -> dict[str, Any]:
    """Train a problem by the command's own plan.

    Args:
        name: Of the problem.
        rows: The budget.
        seed: Of the start and the batches.

    Returns:
        The error on test data that costs no row of the budget, rows in training, seconds of processor time,
        what the plan chose, the member that led at the end, and the first sentence of each warning.
    """
    made.cache_clear()
    problem, began = made(name), process_time()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = tasks.run(
            Benchmarked(problem=name, learning_rate=problem.learning_rate),
            rows=rows,
            seeds=[seed],
            runs=folder,
        )
        seconds = process_time() - began
        line = run.table.set_index("method").loc[POPULATION]
        config = run.problem.config if run.problem else None
        chosen = {setting: getattr(config, setting) for setting in ("batch", "steps", "rates")}
        network = run.network(POPULATION, seed)
    return {
        "error": problem.error(network),
        "rows": rows,
        "rows in training": int(line["rows"]),
        "seconds": seconds,
        **chosen,
        "leader": str(line["leader"]),
        "warnings": [
            str(warning.message).split(". ")[0]
            for warning in caught
            if issubclass(warning.category, UserWarning)
        ],
    }


def measure(name: str, seeds: Sequence[int], shares: Sequence[float], folder: Path) -> None:
    """Measure what is not in the problem's file yet."""
    path = folder / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    of_first_order = rows_of_first_order(name)
    for share in shares:
        for seed in seeds:
            done = result["runs"].setdefault(str(seed), {})
            if str(share) in done:
                continue
            seconds = seconds_of_first_order(name, seed)
            spent = spend(name, round(share * of_first_order), seed)
            done[str(share)] = {**spent, "seconds of first order": seconds}
            result |= {
                **protocol.origin(),
                "command": f"python -m benchmarks budget --size small --problems {name}",
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, result)
            print(f"{name}, seed {seed}, {share}: {done[str(share)]}", flush=True)


def main(words: Sequence[str]) -> None:
    """Measure what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=("ci", "small"), default="ci")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--shares", nargs="+", type=float, choices=SHARES, default=SHARES)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)  # small tensors; and every machine has one
    if asked.size == "ci":
        print(spend("coupled-map", 60, 0))
        return
    for name in asked.problems:
        measure(name, asked.seeds, asked.shares, FOLDER)
    print(write())
