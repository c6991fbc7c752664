"""The wake flow at its presets, and the published errors of the corrected wake beside ours.

python -m benchmarks wake_flow_demo --size small     the README's table
python -m benchmarks figure7_wake --size ci          one seed, minutes; it shows that it runs, no more
python -m benchmarks figure7_wake --size small       three seeds
python -m benchmarks figure7_wake --size paper       the published sizes
python -m benchmarks figure7_wake --from FOLDER      a finished run, such as one that was stopped and resumed
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from benchmarks import protocol
from benchmarks.published import WAKE
from tasks.progress import make_progress
from tasks.runs import atomic
from tasks.runs.folder import Run
from tasks.runs.result import NAME, Result
from tasks.wake_flow.config import PRESETS, Config
from tasks.wake_flow.problem import WakeFlow
from tasks.work import work

METHODS = ("SRC", "NON", "FO-SOL", "ZO-SOL")  # of the published figure
CI = replace(
    PRESETS["demo"],
    width=8,
    reference_width=16,
    warm_up=200,
    frames=60,
    train_reynolds=(120.0, 480.0),
    validation_reynolds=(200.0,),
    test_reynolds=(170.0, 340.0),
    unroll=4,
    non_steps=40,
    fo_steps=10,
    zo_steps=10,
    large_non_steps=10,
    large_steps=10,
    coordinates=24,
    input_directions=24,
    directions=24,
    horizon=40,
    test_starts=2,
    validation_starts=1,
    validate_every=10,
)
"""The smallest at which every part still runs: whether it works, not how well."""
LARGE = replace(
    PRESETS["small"],
    methods=("SRC", "NON large", "FO-SOL large", "TAN-SOL"),
    large_channels=(32,),
    large_blocks=5,
    large_non_steps=400,
    large_learning_rate=5e-4,
    threads=1,
)
"""The published network of 260,354 weights."""
TABLES = {
    "wake_flow_demo": (PRESETS["demo"], 3),
    "wake_flow_small": (replace(PRESETS["small"], threads=1), 3),
    "wake_flow_small_260354": (LARGE, 2),
}
"""Runs whose `result.json` is committed as it is: settings and seeds."""


@dataclass(frozen=True)
class Line:
    """A method's error, ours over the seeds and the published one, and both over SRC's.

    `here` is None where a rollout blew up.
    """

    method: str
    published: float
    here: float | None
    spread: float
    published_ratio: float
    ratio: float | None
    rows: float


def lines(result: Result) -> list[Line]:
    """The table of a finished run."""

    def mean(method: str) -> tuple[float | None, float, float]:
        rows = [row for row in result.table if row.method == method]
        values = [row.value for row in rows if row.value is not None]
        if not rows or len(values) < len(rows):
            return None, 0.0, 0.0
        spread = stdev(values) if len(values) > 1 else 0.0
        return fmean(values), spread, fmean(row.rows for row in rows)

    alone, alone_published = mean("SRC")[0], WAKE["SRC"]
    found = []
    for method in METHODS:
        value, spread, rows = mean(method)
        ratio = value / alone if value is not None and alone is not None else None
        error = WAKE[method]
        found.append(Line(method, error, value, spread, error / alone_published, ratio, rows))
    return found


def differs(config: Config, weights: int) -> str:
    """What keeps ours from being the published experiment, in a sentence."""
    tested = config.test_reynolds
    return (
        f"Ours is on {config.width} x {2 * config.width} cells against {config.reference_width} x "
        f"{2 * config.reference_width} (published 32 x 64, 128 x 256) and differs in the side walls, which "
        "move with the stream, in the viscosity, U D / Re_D on every grid, in the MAE, defined nowhere and "
        f"here over {config.horizon} steps, in the flows tested, Re_D {min(tested):g} to {max(tested):g} "
        f"(480 to 7,680), and in what is trained: {weights:,} weights, {config.zo_steps:,} steps of ZO-SOL "
        f"over {config.unroll} solver steps: so compare the ratios to SRC, not the errors."
    )


def show(table: Sequence[Line]) -> None:
    """Print it."""
    print("method   published  ours             over SRC: published  ours    rows")
    for line in table:
        here = "blew up" if line.here is None else f"{line.here:.3f} +- {line.spread:.3f}"
        ratio = "-" if line.ratio is None else f"{line.ratio:.2f}"
        print(
            f"{line.method:8s} {line.published:.3f}      {here:16s} {line.published_ratio:.2f}"
            f"                 {ratio:7s} {line.rows:,.0f}"
        )


def options(name: str, sizes: Sequence[str]) -> argparse.ArgumentParser:
    """What all benchmarks of the wake are asked by."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=__doc__)
    parser.add_argument("--size", choices=sizes, default="ci")
    parser.add_argument("--seeds", type=int, help="1 for ci")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    return parser


def finished(config: Config, size: str, seeds: int, runs: Path, data: Path) -> Run:
    """A run from start to end."""
    problem = WakeFlow(config, folder=data)
    words = ["python", "-m", "benchmarks", *sys.argv[1:]]
    run = Run.create(runs, problem.name(), size, config, range(seeds), data=data, command=words)
    with make_progress() as progress, run.lock():
        work(problem, run, progress)
    return run


def table(name: str, words: Sequence[str]) -> None:
    """Run one of `TABLES`, and keep its `result.json`; the ci size has its methods and is kept nowhere."""
    chosen = options(name, ("ci", "small")).parse_args(words)
    config, seeds = TABLES[name]
    if chosen.size == "ci":
        large = {"large_channels": (4,), "large_blocks": config.large_blocks and 1}
        config, seeds = replace(CI, methods=config.methods, **large), 1
    run = finished(config, chosen.size, chosen.seeds or seeds, chosen.runs, chosen.data)
    for row in Result.read(run.path).table:
        print(f"{row.method:16s} seed {row.seed}  MAE {row.value}  {row.rows:,} rows")
    if chosen.size != "ci":
        path = protocol.path(name, chosen.size)
        atomic.write_bytes(path, (run.path / NAME).read_bytes())
        print(f"written to {path}")


def figure7(words: Sequence[str]) -> None:
    """Run, or read a run; print and write the published errors beside ours."""
    sizes = {"ci": CI, "small": PRESETS["small"], "paper": PRESETS["paper"]}
    parser = options("figure7_wake", tuple(sizes))
    parser.add_argument("--from", dest="folder", type=Path, help="a finished run's folder")
    chosen = parser.parse_args(words)
    if chosen.folder is None:
        seeds = chosen.seeds or (1 if chosen.size == "ci" else 3)
        config = replace(sizes[chosen.size], methods=METHODS)
        run = finished(config, chosen.size, seeds, chosen.runs, chosen.data)
    else:
        run = Run.open(chosen.folder)
    result, config = Result.read(run.path), run.configuration(Config)
    found = lines(result)
    weights = max(int(row.extra.get("weights") or 0) for row in result.table if row.method in METHODS)
    show(found)
    print(differs(config, weights))
    size = chosen.size if chosen.folder is None else run.preset
    if size != "ci":
        kept = {"preset": size, "seeds": list(run.seeds), "differs": differs(config, weights)}
        results = {**kept, "table": [asdict(line) for line in found]}
        protocol.write("figure7_wake", words, results, protocol.path("figure7_wake", size))
