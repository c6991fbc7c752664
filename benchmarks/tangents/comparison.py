"""Learned tangents against first order, the identity, sparse CGE and RGE: error, rows and cosine.

    python -m benchmarks tangents --size ci                    a few steps of one problem; written nowhere
    python -m benchmarks tangents --size small                 all problems, three seeds: two hours of a core
    python -m benchmarks tangents --size small wake-1k         some problems
    python -m benchmarks tangents --size small --table         the table and picture of what was measured

Each problem's results go into `benchmarks/results/tangents/PROBLEM.json` as they come; what is there already
is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import protocol
from benchmarks.tangents import report
from benchmarks.tangents.problem import Problem
from benchmarks.tangents.problems import problems
from tasks.runs import atomic
from tasks.runs.machine import machine, versions

FOLDER = protocol.RESULTS / "tangents"
SEEDS = (0, 1, 2)


def main(words: Sequence[str]) -> None:
    """Measure what is asked for and not there yet, then write table and picture."""
    makers = problems("small")
    parser = argparse.ArgumentParser(prog="python -m benchmarks tangents", description=__doc__)
    parser.add_argument("--size", choices=("ci", "small"), default="ci")
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(makers)}; all if none")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    asked = parser.parse_args(words)
    unknown = set(asked.problems) - set(makers)
    if unknown:
        parser.error(f"expected problems out of {', '.join(makers)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)  # small tensors; and every machine has one
    if asked.size == "ci":
        smallest(asked.problems or ["lorenz-96"], makers)
        return
    if not asked.table:
        for name in asked.problems or makers:
            measure(name, makers[name], FOLDER / f"{name}.json")
    measured = {
        name: json.loads(path.read_text()) for name in makers if (path := FOLDER / f"{name}.json").exists()
    }
    report.write(measured, FOLDER)


def smallest(names: Sequence[str], makers: Mapping[str, Callable[[], Problem]]) -> None:
    """Whether everything runs: two steps of each method, one seed."""
    from benchmarks.tangents.training import train

    for name in names:
        problem = replace(makers[name](), steps=2)
        for method in problem.methods or ("FO", "identity", "dense"):
            curve = train(problem, method, problem.start(0), 0)
            print(f"{name}, {method}: {curve.errors[0]:.4f} -> {curve.final:.4f}, {curve.rows[-1]:,} rows")


def measure(name: str, make: Callable[[], Problem], path: Path) -> None:
    """Train by every method and seed that is not in the file."""
    from benchmarks.tangents.training import train

    problem = make()
    found: dict[str, Any] = {"unit": problem.unit, "steps": problem.steps, "curves": {}}
    if path.exists():
        found = json.loads(path.read_text())
    for seed in SEEDS:
        missing = [
            method
            for method in problem.methods or ("FO", "identity", "dense")
            if str(seed) not in found["curves"].get(method, {})
        ]
        if not missing:
            continue
        start = problem.start(seed)
        found |= {
            "weights": sum(parameter.numel() for parameter in start.parameters()),
            "command": protocol.command("tangents", ["--size", "small", name]),
            "machine": machine(),
            "versions": versions(),
        }
        for method in missing:
            curve = train(problem, method, copy.deepcopy(start), seed)
            found["curves"].setdefault(method, {})[str(seed)] = asdict(curve)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, found)
            change = f"{curve.errors[0]:.4f} -> {curve.final:.4f}"
            print(f"{name}, seed {seed}, {method}: {change}, {curve.rows[-1]:,} rows", flush=True)
