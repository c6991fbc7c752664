"""The published errors of the corrected wake beside ours: SRC, NON, ZO-SOL, FO-SOL.

python -m benchmarks.figure7_wake --size ci        one seed, minutes; it shows that it runs, no more
python -m benchmarks.figure7_wake --size small     three seeds
python -m benchmarks.figure7_wake --size paper     the published sizes
python -m benchmarks.figure7_wake --from FOLDER    a finished run, such as one that was stopped and resumed
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.protocol import write
from benchmarks.wake_sizes import SIZES
from tasks import api
from tasks.runs.folder import Run
from tasks.runs.result import Result
from tasks.wake_flow import published
from tasks.wake_flow.config import Config
from tasks.wake_flow.problem import WakeFlow

METHODS = ("SRC", "NON", "FO-SOL", "ZO-SOL")


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

    alone, alone_published = mean("SRC")[0], published.ERRORS["SRC"]
    found = []
    for method in METHODS:
        value, spread, rows = mean(method)
        ratio = value / alone if value is not None and alone is not None else None
        error = published.ERRORS[method]
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


def main() -> None:
    """Run, or read a run; print and write the table."""
    parser = argparse.ArgumentParser(description="The published errors of the corrected wake beside ours.")
    parser.add_argument("--size", choices=("ci", "small", "paper"), default="ci")
    parser.add_argument("--seeds", type=int, help="1 for ci, 3 otherwise")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--from", dest="folder", type=Path, help="a finished run's folder")
    chosen = parser.parse_args()
    if chosen.folder is None:
        config = replace(SIZES[chosen.size], methods=METHODS)
        seeds = tuple(range(chosen.seeds or (1 if chosen.size == "ci" else 3)))
        problem = WakeFlow(config, folder=chosen.data)
        run = Run.open(api.run(problem, seeds=seeds, runs=chosen.runs).path)
    else:
        run = Run.open(chosen.folder)
    result, config = Result.read(run.path), run.configuration(Config)
    table = lines(result)
    weights = max(int(row.extra.get("weights") or 0) for row in result.table if row.method in METHODS)
    show(table)
    print(differs(config, weights))
    if chosen.folder is not None or chosen.size != "ci":
        kept = {"preset": run.preset, "seeds": list(run.seeds), "differs": differs(config, weights)}
        write("figure7_wake", {**kept, "table": [asdict(line) for line in table]})


if __name__ == "__main__":
    main()
