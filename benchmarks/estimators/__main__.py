"""CGE, RGE, hybrid and per-row gradients at equal queries: cosine, loss, time; beside torchopt and evotorch.

    python -m benchmarks.estimators            # about six minutes of a busy core
    python -m benchmarks.estimators --quick    # under one; prints, and writes nothing

Needs `pip install -e '.[benchmark]'`; torchopt or evotorch may be missing: the first lines then
say so, and the tables go without.
Queries are perturbed objectives on a batch; the one base evaluation of a step, which all have, is not
among them, and rows of the black box are those that its ledger counts, base included. Truth is autograd in
float64, through the wake's derivable solver where a black box stands. Writes `results/estimators.json`
and `estimators.png`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch

import zo
from benchmarks.estimators.methods import Method, autograd, row_methods, weight_methods
from benchmarks.estimators.others import NOT_COMPARABLE, PACKAGES, installed, other_methods
from benchmarks.estimators.picture import picture
from benchmarks.estimators.problems import EXTRA, Setting, digits, size, wake
from benchmarks.estimators.quadratic import quadratic, same_directions
from benchmarks.estimators.quality import WARM_STEPS, quality
from benchmarks.estimators.times import times
from benchmarks.estimators.training import Run, training
from benchmarks.protocol import write
from tasks.runs.machine import version


@dataclass(frozen=True)
class Effort:
    """How much is spent on the figures."""

    seeds: int  # of a cosine
    budgets: tuple[int, ...]  # queries of one estimate
    dense: bool  # whether also as many as there are weights
    repeats: int  # on the quadratic
    training_seeds: int
    rates: tuple[float, ...]  # learning rates to choose from
    queries: tuple[int, int]  # training budgets: digits, wake
    rounds: int  # of times


FULL = Effort(6, (16, 64, 256), True, 300, 3, (3e-3, 1e-2, 3e-2, 1e-1), (7680, 3840), 7)
QUICK = Effort(2, (64,), False, 10, 1, (1e-2,), (1280, 640), 1)


def main() -> None:
    """Run every part, print its tables, write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and queries; writes nothing")
    quick = parser.parse_args().quick
    effort = QUICK if quick else FULL
    torch.set_num_threads(1)
    began = process_time()
    packages = {name: version(name) for name in (*PACKAGES, "scikit-learn")}
    for name in PACKAGES:
        print(f"{name}: {packages[name]}" + ("" if installed(name) else f" ({EXTRA})"))
    for name, reason in NOT_COMPARABLE.items():
        print(f"not comparable: {name}: {reason}")
    classifier, flow = digits(), wake()
    results: dict[str, Any] = {"packages": packages, "not comparable": NOT_COMPARABLE}

    results["quadratic"] = show("Estimates of a quadratic's gradient", quadratic(effort.repeats))
    results["along our own directions"] = same_directions()
    for name, difference in results["along our own directions"].items():
        print(f"  along the same directions, {name}: off by {difference:.1e}")

    everything = weight_methods() + row_methods() + other_methods()
    qualities = []
    for setting in (classifier, flow):
        dense = (size(setting.network()),) if effort.dense else ()
        qualities += quality(setting, everything, effort.budgets + dense, effort.seeds)
        qualities += quality(setting, everything, effort.budgets[-1:], effort.seeds, steps=WARM_STEPS)
    results["gradients"] = show("Estimates against autograd", qualities)

    trainings = []
    for setting, queries in zip((classifier, flow), effort.queries, strict=True):
        trainings += training(setting, _runs(setting), queries, effort.rates, effort.training_seeds)
    results["training"] = show("Training loss after equal queries", trainings)

    wide = digits(channels=24)
    results["times"] = show(
        "Time of a query",
        [row for setting in (classifier, wide, flow) for row in times(setting, effort.rounds)],
    )
    results["processor seconds"] = process_time() - began
    print(f"\n{results['processor seconds']:.0f} seconds of processor time")
    if not quick:
        picture(qualities, trainings)
        write("estimators", results)


def _runs(setting: Setting) -> list[Run]:
    """What is trained; names are those of the tables before."""
    named: dict[str, Method] = {m.name: m for m in weight_methods() + row_methods() + other_methods()}
    names = [
        "CGE, random set, forward",
        "hybrid, the biases",
        "RGE, gaussian, forward",
        "RGE, gaussian, antithetic",
    ]
    if setting.box is None:
        names += ["RGE, sphere, forward", "RGE, rademacher, forward"]
        names += ["torchopt, antithetic", "torchopt, forward / sigma^2", "evotorch, symmetric / sigma^2"]
        fewer = []
    else:
        names += ["per row, gaussian, forward", "per row, orthogonal, forward"]
        fewer = [Run(named[name], 16) for name in ("RGE, gaussian, forward", "per row, orthogonal, forward")]
    each = [Run(named[name]) for name in names if name in named]
    return [Run(autograd()), Run(named["CGE, all"], None), *each, *fewer]


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Print plain values as tables, one for each problem, and hand the rows back."""
    for problem in dict.fromkeys(row.get("problem") for row in rows):
        part = [row for row in rows if row.get("problem") == problem]
        columns = [
            name
            for name, value in part[0].items()
            if name not in ("problem", "weights", "seeds")
            and not isinstance(value, list)
            and any(row[name] is not None for row in part)
        ]
        cells = [columns, *([_cell(row[name]) for name in columns] for row in part)]
        widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
        print(f"\n{title}" + (f": {problem}" if problem else ""))
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return list(rows)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # PhiFlow's tracing warns at every size that it reads
    warnings.simplefilter("error", zo.EvaluatorWarning)
    main()
