"""Learned tangents beside first order, no gradient and their rivals: error, rows, seconds and cosine.

    python -m benchmarks tangents --size ci                       two steps of one problem; written nowhere
    python -m benchmarks tangents --size small                    all problems by the methods of README
    python -m benchmarks tangents --size small --problems lorenz-96 --methods rge eggroll --seeds 0
    python -m benchmarks tangents --size small --table            tables and pictures of what was measured
    python -m benchmarks tangents --size small --uncorrected      errors of the solvers alone
    python -m benchmarks tangents --size small --seeds 3 4 5 --folder fresh
                                                                  again, with other seeds, beside the first

Each problem's results go into `benchmarks/results/tangents/PROBLEM.json` as they come, or into a folder in
there; what is there already is not measured again. Two processes can measure different problems.
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
from benchmarks.catalogue import LONG
from benchmarks.tangents import report
from benchmarks.tangents.problem import BenchmarkProblem
from blackbox.checks import nearest
from tasks.folder import atomic

FOLDER = protocol.RESULTS / "tangents"
CI = ("lorenz-96",)
MAIN = ("first-order", "no-gradient", "chosen")  # of README
SEEDS = {"double-pendulum-wall": 6, **dict.fromkeys(LONG, 1)}  # of the others three; of size paper one


def main(words: Sequence[str]) -> None:
    """Measure what is asked for and not there yet, then write tables and pictures."""
    from benchmarks.tangents.methods import METHODS
    from benchmarks.tangents.problems import problems

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tangents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=("ci", "small", "paper"), default="ci")
    parser.add_argument("--problems", nargs="+", metavar="PROBLEM", help="all of the size if left out")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"{', '.join(MAIN)} if left out")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="0 1 2 of most if left out")
    parser.add_argument("--folder", default="", help="of the results, in benchmarks/results/tangents")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--uncorrected", action="store_true", help="the solvers alone, and nothing else")
    asked = parser.parse_args(words)
    makers = problems(asked.size)
    for name, asked_names, known in (
        ("--problems", asked.problems, makers),
        ("--methods", asked.methods, METHODS),
    ):
        unknown = [asked_name for asked_name in asked_names or () if asked_name not in known]
        if unknown:
            words = f"expected some of {', '.join(known)}, got {unknown[0]!r}"
            parser.error(f"{name}: {words}. {nearest(unknown[0], known)}")
    torch.set_num_threads(1)  # small tensors; and every machine has one
    if asked.size == "ci":
        smallest(asked.problems or CI, makers, asked.methods)
        return
    if asked.uncorrected:
        for name in asked.problems or makers:
            uncorrected(name, makers[name])
        return
    folder = FOLDER / asked.folder
    if not asked.table:
        for name in asked.problems or makers:
            path = folder / file_name(name, asked.size)
            usual = SEEDS.get(name, 3) if asked.size == "small" else 1
            measure(name, makers[name], path, asked.seeds or range(usual), asked.methods or MAIN, asked.size)
    files = [file_name(name, size) for size in ("small", "paper") for name in problems(size)]
    paths = {Path(file).stem: folder / file for file in files}
    report.write({name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}, folder)


def file_name(problem: str, size: str) -> str:
    """Where a problem's results of a size go."""
    return f"{problem}.json" if size == "small" else f"{problem}-{size}.json"


def smallest(
    names: Sequence[str], makers: Mapping[str, Callable[[], BenchmarkProblem]], methods: Sequence[str] | None
) -> None:
    """Whether everything runs: two steps of each method, one seed, and the table of that."""
    from benchmarks.tangents.methods import fitting
    from benchmarks.tangents.training import train

    for name in names:
        problem = replace(makers[name](), steps=2)
        for method in methods or fitting(problem):
            curve = train(problem, method, problem.start(0), 0)
            last = curve.ended or f"{curve.errors[0]:.4f} -> {curve.errors[-1]:.4f}, {curve.rows[-1]:,} rows"
            print(f"{name}, {method}: {last}")


def measure(
    name: str,
    make: Callable[[], BenchmarkProblem],
    path: Path,
    seeds: Sequence[int],
    methods: Sequence[str],
    size: str = "small",
) -> None:
    """Train by every method and seed that is not in the file.

    Args:
        name: of the problem.
        make: it.
        path: of the file; written after each training.
        seeds: of the trainings.
        methods: by name; those that do not fit the problem are left out.
        size: of the problem.
    """
    from benchmarks.tangents.methods import fitting
    from benchmarks.tangents.training import chosen_scale, train

    problem, into = make(), ["--folder", path.parent.name] if path.parent != FOLDER else []
    fit = [method for method in methods if method in fitting(problem)]
    result: dict[str, Any] = {
        "unit": problem.unit,
        "hard": problem.hard,
        "steps": problem.steps,
        "size": size,
        "scales": {},
        "curves": {},
    }
    if path.exists():
        result = json.loads(path.read_text())
    for seed in seeds:
        wanted = [method for method in fit if str(seed) not in result["curves"].get(method, {})]
        if not wanted:
            continue
        start = problem.start(seed)
        result |= {
            "weights": sum(parameter.numel() for parameter in start.parameters()),
            "command": protocol.command(
                "tangents",
                [
                    *("--size", size, "--problems", name, *into),
                    *("--methods", *fit, "--seeds", *map(str, seeds)),
                ],
            ),
            **protocol.origin(),
        }
        for method in wanted:
            if method not in result["scales"]:
                result["scales"][method] = chosen_scale(problem, method)
            scale, rows = result["scales"][method], base_rows(result["curves"], seed)
            curve = train(problem, method, copy.deepcopy(start), seed, scale, rows)
            result["curves"].setdefault(method, {})[str(seed)] = asdict(curve)
            origin = {key: result[key] for key in ("command", "machine", "versions", "commit")}
            result.setdefault("origins", {})[method] = origin  # the file's own are those of the last method
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, result)
            last = f"{curve.errors[0]:.4f} -> {curve.errors[-1]:.4f}, {curve.rows[-1]:,} rows"
            print(f"{name}, seed {seed}, {method}: {last}, {curve.seconds:.0f} s {curve.ended}", flush=True)


def uncorrected(name: str, make: Callable[[], BenchmarkProblem]) -> None:
    """Add the error of a problem's box alone to the file of these, where its network corrects.

    Args:
        name: of the problem.
        make: it.
    """
    known = report.uncorrected()
    if name in known or (problem := make()).alone is None:
        return
    errors = known | {name: problem.error(problem.alone)}
    print(f"{name}: {errors[name]:.4g}")
    protocol.write("tangents", ["--size", "small", "--uncorrected"], {"errors": errors}, report.UNCORRECTED)


def base_rows(curves: Mapping[str, Any], seed: int) -> int | None:
    """First order's rows, which are those of no-gradient as well; None where neither is there yet."""
    for method in ("first-order", "no-gradient"):
        if str(seed) in curves.get(method, {}):
            return curves[method][str(seed)]["rows"][-1]
    return None
