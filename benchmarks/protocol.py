"""How benchmarks measure: contenders in turn in one process, medians, and a note of where it ran."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

from tasks.configuration import to_dict
from tasks.folder import atomic
from tasks.folder.machine import machine, versions
from tasks.folder.run import Run
from tasks.listeners.progress import make_progress
from tasks.methods.by_name import methods_named
from tasks.planning.plan import plan_of
from tasks.problem.problem import Problem
from tasks.running.start import carry_out

RESULTS = Path(__file__).parent / "results"
SCRATCH = Path("runs/benchmarks")
CHANGED = ", changed since"  # behind a commit
CHECKOUT = Path(__file__).parent.parent
PRODUCT = "blackbox", "simulators", "tasks", "zo"  # whose code figures are of


@dataclass(frozen=True)
class Spread:
    """Seconds of a run: the median over the rounds, and the quartiles on both sides of it."""

    lower: float
    median: float
    upper: float


def spreads(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = perf_counter
) -> dict[str, Spread]:
    """Seconds of each run, one after the other in each round, after one round to warm up.

    What disturbs the machine disturbs all of them, so ratios hold where single times do not.

    Args:
        runs: what to time, in turn.
        rounds: how many; with a single one the quartiles are that one.
        clock: in seconds. `time.process_time` leaves out what other processes take of a shared core; where
            one thread computes on an idle machine it is the wall's.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            began = clock()
            run()
            if round_:
                times[name].append(clock() - began)
    return {
        name: Spread(*statistics.quantiles(values * (2 if rounds == 1 else 1), n=4, method="inclusive"))
        for name, values in times.items()
    }


def options(
    name: str, about: str | None, sizes: Iterable[str] = ("ci", "small"), *, trains: bool = False
) -> argparse.ArgumentParser:
    """The command line's options of a benchmark.

    Args:
        name: Of the benchmark.
        about: What its help says.
        sizes: It has.
        trains: Whether it has runs of a task, and so seeds and folders of data and runs.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}", description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--size", choices=tuple(sizes), default="ci")
    if trains:
        text = "which, such as 0 1 2; those of the committed figures if left out"
        parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help=text)
        parser.add_argument("--data", type=Path, default=Path("data"))
        parser.add_argument("--runs", type=Path, default=SCRATCH)
    return parser


def finished(problem: Problem, size: str, seeds: Sequence[int], runs: Path) -> Run:
    """A finished run of a task: run from its start, continued where it was stopped, or read from the folder.

    One that was begun at another commit, or with other versions, is another run.

    Args:
        problem: With its settings.
        size: Of the benchmark.
        seeds: Which.
        runs: The folder with a folder for each commit, in which it is looked for.
    """
    methods = methods_named(problem)
    plan = plan_of(problem, methods, seeds, preset=size, where="")  # found by what it is, not by its command
    wanted = to_dict(problem.config)
    folder = runs / (commit() or "unknown").replace(" ", "-")
    known = (Run.open(path.parent) for path in sorted(folder.glob("*/config.json")))
    asked_for = problem.name(), wanted, plan.seeds
    run = next(
        (run for run in known if (run.task, run.config, run.seeds) == asked_for and _is_of_now(run)), None
    )
    if run is not None:
        print(f"{'Finished before' if run.finished else 'Going on with'}: {run.path}")
    else:
        words = ["python", "-m", "benchmarks", *sys.argv[1:]]  # not the path of a file on this machine
        run = Run.create(folder, plan.terms, command=words)
    if not run.finished:
        with make_progress() as progress, run.lock():
            carry_out(run, plan, progress)
    return run


def _is_of_now(run: Run) -> bool:
    """True if a run began with today's versions; it may note more, as the digest of a problem's code."""
    return versions().items() <= run.versions.items()


def path(name: str, size: str) -> Path:
    """Where figures go: those of "small" have the name alone, and those of "ci" are not to be kept."""
    if size == "ci":
        return SCRATCH / f"{name}-ci.json"
    return RESULTS / (f"{name}.json" if size == "small" else f"{name}-{size}.json")


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]], *, right: bool = False) -> str:
    """A table.

    Args:
        heads: of its columns.
        lines: of cells.
        right: whether all columns but the first are set to the right.
    """
    rule = ["---", *["---:" if right else "---"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def command(name: str, words: Sequence[str]) -> str:
    """The command that runs a benchmark."""
    return shlex.join(["python", "-m", "benchmarks", name, *words])


def origin() -> dict[str, Any]:
    """Where and with what figures are measured: machine, versions and commit."""
    return {"machine": machine(), "versions": versions(), "commit": commit()}


@cache
def commit() -> str | None:
    """The commit of the checkout, with a word where files were changed since; None of no checkout."""
    head = git("rev-parse", "--short", "HEAD")
    changed = CHANGED if git("status", "--porcelain", "--", *PRODUCT) else ""
    return f"{head}{changed}" if head else None


def git(*words: str) -> str | None:
    """The output of a command of git in the checkout; None where it fails, or there is none."""
    try:
        run = subprocess.run(["git", *words], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def write(name: str, words: Sequence[str], results: Mapping[str, Any], to: Path) -> None:
    """Write results with machine, versions and command.

    Args:
        name: Of the benchmark.
        words: Of its command line.
        results: Plain values.
        to: The file.
    """
    content = {"command": command(name, words), **origin(), **results}
    to.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(to, (json.dumps(content, indent=1) + "\n").encode())
    print(f"written to {to}")
