"""Classifiers that may mislead a student: held-out accuracy on the way, and which weights are kept.

python -m benchmarks.safeguard --preset ci        seconds; it shows that it runs, no more
python -m benchmarks.safeguard --preset small     a random forest and an RBF-SVM of the digits, 20,000 queries

A forest is constant almost everywhere, and an SVM's decision function is flat far from its data. A student is
smooth, and its derivative need not be theirs. Weights therefore count only if the box itself, asked, is right
more often on held-out noisy images than with the weights that training began with.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import tasks
from benchmarks.protocol import write
from benchmarks.table_defense import CI
from tasks.denoised_smoothing import DenoisedSmoothing
from tasks.denoised_smoothing.config import Config
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row

NAME = "denoised_smoothing_safeguard"  # file in `benchmarks/results`
BOXES = ("forest", "svm")
WEIGHTS = ("start", "last weights", "chosen weights")
METHODS = ("none", "mse", "student")
SIZES = {"ci": replace(CI, methods=METHODS), "small": Config(methods=METHODS)}
SHOWN = (
    "certified accuracy at r = 0",
    "certified accuracy at r = 0.25",
    "certified accuracy at r = 0.5",
    "ACR",
)


def measured(run: Run) -> list[dict[str, object]]:
    """A line for every seed: held-out accuracy on the way, which weights were kept, and certificates.

    Args:
        run: finished.
    """
    rows = {(row.method, row.seed): row for row in Result.read(run.path).table}
    found = []
    for seed in run.seeds:
        own, stage = rows["student", seed], f"seed-{seed}/student"
        metrics = [line for line in run.metrics() if line["stage"] == stage and "validation" in line]
        held_out = {int(line["step"]): 1 - float(line["validation"]) for line in metrics}
        chosen = own.extra["chosen step"]
        assert isinstance(chosen, int)
        found.append(
            {
                "seed": seed,
                "held-out accuracy by step": held_out,
                "chosen step": chosen,
                "start kept": bool(own.extra["start kept"]),
                "held-out accuracy, start": held_out[0],
                "held-out accuracy, last weights": held_out[max(held_out)],
                "held-out accuracy, chosen weights": held_out[chosen],
                "queries": own.queries,
                "certified": {m: certified(rows[m, seed]) for m in METHODS},
            }
        )
    return found


def certified(row: Row) -> dict[str, object]:
    """The figures of the certificates."""
    figures = {row.metric: row.value, **row.extra}
    return {name: figures[name] for name in SHOWN}


def main() -> None:
    """Run both classifiers, print and keep what happened."""
    parser = argparse.ArgumentParser(description="What keeps a student from making a classifier worse.")
    parser.add_argument("--preset", choices=tuple(SIZES), default="ci")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    chosen = parser.parse_args()
    seeds, found = tuple(range(chosen.seeds)), {}
    for box in BOXES:
        config = replace(SIZES[chosen.preset], box=box)
        run = Run.open(tasks.run(DenoisedSmoothing(config), seeds=seeds, runs=chosen.runs).path)
        found[box] = {"config": run.config, "seeds": measured(run)}
        for line in found[box]["seeds"]:
            start, last, kept = (f"{line[f'held-out accuracy, {w}']:.3f}" for w in WEIGHTS)
            print(
                f"{box}, seed {line['seed']}: held-out accuracy {start} at the start, {last} at the end; "
                f"kept: step {line['chosen step']}, {kept}"
            )
    if chosen.preset != "ci":
        command = shlex.join(["python", "-m", "benchmarks.safeguard", *sys.argv[1:]])
        write(NAME, {"command": command, "preset": chosen.preset, "boxes": found})


if __name__ == "__main__":
    main()
