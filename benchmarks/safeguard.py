"""Classifiers that may mislead a student: held-out accuracy on the way, and which weights are kept.

python -m benchmarks safeguard --size ci        seconds; it shows that it runs, no more
python -m benchmarks safeguard --size small     a random forest and an RBF-SVM of the digits, 20,000 queries

A forest is constant almost everywhere, and an SVM's decision function is flat far from its data. A student is
smooth, and its derivative need not be theirs. Weights therefore count only if the box itself, asked, is right
more often on held-out noisy images than with the weights that training began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks import protocol
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
                "queries": own.rows,
                "certified": {m: _shown(rows[m, seed]) for m in METHODS},
            }
        )
    return found


def _shown(row: Row) -> dict[str, object]:
    figures = {row.metric: row.value, **row.extra}
    return {name: figures[name] for name in SHOWN}


def main(words: Sequence[str]) -> None:
    """Run both classifiers, print and keep what happened."""
    chosen = protocol.options("safeguard", __doc__, SIZES, trains=True).parse_args(words)
    found = {}
    for box in BOXES:
        problem = DenoisedSmoothing(replace(SIZES[chosen.size], box=box), folder=chosen.data)
        run = protocol.finished(problem, chosen.size, range(chosen.seeds or 1), chosen.runs)
        found[box] = {"config": run.config, "seeds": measured(run)}
        for line in found[box]["seeds"]:
            start, last, kept = (f"{line[f'held-out accuracy, {w}']:.3f}" for w in WEIGHTS)
            print(
                f"{box}, seed {line['seed']}: held-out accuracy {start} at the start, {last} at the end; "
                f"kept: step {line['chosen step']}, {kept}"
            )
    if chosen.size != "ci":
        to = protocol.path(NAME, chosen.size)
        protocol.write("safeguard", words, {"preset": chosen.size, "boxes": found}, to)
