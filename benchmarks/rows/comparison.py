"""Error over rows: first order, and learned tangents with anchored replay, at a share of first order's rows.

    python -m benchmarks rows --size ci                      two windows of one problem; written nowhere
    python -m benchmarks rows --size small                   problems of `tangents`, two seeds
    python -m benchmarks rows --size small --problems double-pendulum --seeds 2 3
    python -m benchmarks rows --size small --problems gray-scott --shares 0.2 --controls stored-derivative
    python -m benchmarks rows --size small --problems gray-scott --shares 0.1 0.4
    python -m benchmarks rows --size small --steps --problems henon-heiles coupled-map --seeds 3 4 5
    python -m benchmarks rows --size small --steps --long --problems lens --seeds 3

First order is run as `tangents` runs it, and tuned at the same rows: from batches of 1 and of 4 rows, with
the usual learning rate and with twice that, on to half and twice the rate and a quarter and four times the
batch until none of these is better on validation data; its gradients are shortened as those of tangents are.
What was measured before that has four trainings to choose from and no bound ("tried": 4). The others have one
row a batch. Replays are those of the library's own rule, and no setting is chosen for a problem. --shares
are those of first order's rows. With --batches first order alone is run, with batches of 1, 4 and 16 rows.

With --steps there are these lines: replays with the usual rate, with one that a rule suggests, with several
at once (`zo.Population`), and at the least share with the best of several on validation data, by what was
learned and by the box's true derivative. Where batches cost no row `zo.tangents.Surrogate` is beside them, a
model fitted in rounds to the rows of the network, through which the network is trained alone, with the best
of several rates on validation data. CMA-ES with a diagonal covariance is beside them, on values of the loss
alone, with the best of several standard deviations on validation data; it needs `cma`.

With --steps and --long, trainings have ten times first order's rows: first order, tuned, with all of these
and with a fifth, and `zo.Population` with a fifth.

With --controls there are these lines in the place of the others, all of them or those that are named:

    no-derivative       replays of what was recorded alone, without any derivative of the box
    model-alone         replays in which the model's own values stand for what was recorded
    stored-derivative   first order with replays of its own: y_k + F'(x_k) (x' - x_k), what it has stored
    true-derivative     replays that the box itself answers, for nothing: no model can do more with these rows

Errors are on data that no training has seen. Results go into `benchmarks/results/rows/PROBLEM.json`
(`by_batch/PROBLEM.json`, `controls/PROBLEM.json`, `steps/PROBLEM.json`) as they come; what is there is not
measured again. At the end `table.md`, `rows.png` and `batches.png` are written there, `steps/table.md` and
`steps/steps.png`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import protocol
from benchmarks.rows.report import BY_BATCH, BY_STEPS, CONTROLLED, FOLDER, write
from benchmarks.rows.training import train, tuned
from benchmarks.rows.ways import (
    CONTROLS,
    FIFTH_OF_LONG,
    LONG,
    MORE_SHARES,
    SHARES,
    Way,
    by_batch,
    by_steps,
    controls,
    long_lines,
    ways,
)
from benchmarks.tangents.problems import CONTROLLERS, HELD_OUT, problems
from tasks.folder import atomic

SMALL = (
    *("double-pendulum", "gray-scott", "kuramoto-sivashinsky", "brusselator", "fitzhugh-nagumo"),
    *("van-der-pol", "lorenz-96", "coupled-map", "implicit-diffusion", "advection-reaction"),
    *("shallow-water", "mixed-units", "vorticity", "ks-26-8", "ks-3k", "ks-3k-noise", "wake-1k"),
    *("double-pendulum-wall", "fitzhugh-nagumo-noise", "fitzhugh-nagumo-failing"),
    *("filter", "brusselator-20k", "wake-30k", "wake-30k-unroll-16", "wake-260k", "wake-32x64"),
    *("kolmogorov", "ks-26-8-unroll-8", "ks-52-12", "kuramoto-sivashinsky-32"),
    *dict.fromkeys((*CONTROLLERS, *HELD_OUT)),
)


def measure(name: str, seeds: Sequence[int], lines: dict[str, list[Way]], folder: Path) -> dict[str, Any]:
    """Measure the ways that are not in the problem's file yet, and return all of it."""
    path = folder / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    option = {BY_BATCH: " --batches", CONTROLLED: " --controls", BY_STEPS: " --steps"}.get(folder, "")
    for seed in seeds:
        for line, several in lines.items():
            if line in result["runs"].setdefault(str(seed), {}):
                continue
            trained = tuned(problems("small")[name], several, seed)
            result["runs"][str(seed)][line] = trained | {"commit": protocol.commit()}
            result |= {
                **protocol.origin(),
                "commit": result.get("commit") if path.exists() else protocol.commit(),  # of older lines
                "command": f"python -m benchmarks rows --size small --problems {name}{option}",
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, result)
            print(f"{name}, seed {seed}, {line}: {result['runs'][str(seed)][line]}", flush=True)
    return result


def main(words: Sequence[str]) -> None:
    """Measure what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=("ci", "small"), default="ci")
    parser.add_argument("--problems", nargs="+", choices=SMALL, default=SMALL)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--shares", nargs="+", type=float, choices=MORE_SHARES, default=SHARES)
    parser.add_argument("--controls", nargs="*", choices=CONTROLS)
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--lines", nargs="+", help="of these lines alone, by their names in the files")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)  # small tensors; and every machine has one
    if asked.size == "ci":
        problem = problems("small")[SMALL[0]]()
        for way in (Way(batch=1), Way(batch=1, derivative="learned", replays=True)):
            trained = train(copy.copy(problem), way, 0, most=3)
            print(f"{SMALL[0]}, {way}: {trained['error']:.4f}, {trained['rows']} rows")
        return
    lines, folder = ways(asked.shares), FOLDER
    if asked.batches:
        lines, folder = by_batch(), BY_BATCH
    elif asked.controls is not None:
        lines, folder = controls(asked.shares, asked.controls or CONTROLS), CONTROLLED
    for name in asked.problems:
        if asked.steps:
            shares = (FIFTH_OF_LONG, LONG) if asked.long else asked.shares
            lines, folder = by_steps(problems("small")[name](), shares), BY_STEPS
        if asked.long:
            lines = {line: lines[line] for line in long_lines()}
        wanted = {line: several for line, several in lines.items() if line in (asked.lines or lines)}
        measure(name, asked.seeds, wanted, folder)
    write()
