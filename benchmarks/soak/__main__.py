"""A soak: tasks of the product run through the console script under faults, and must end as undisturbed.

python -m benchmarks.soak --seconds 600 --seed 0

Each task is first run undisturbed in one process. Then round after round is run under faults that are drawn
from the seed, resumed after each as its own words say, with other numbers of processes. In the end all bits
of its final checkpoints, its metrics and its table must be those of the undisturbed run. A round is repeated
with `--jobs JOB --round NUMBER`: the same faults in the same order at the same places of the run, though not
at the same microsecond. Exit status 1: some round ended otherwise, or a fault was not met as documented.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.soak import disk, faults, outcome, report
from benchmarks.soak.jobs import JOBS, Job
from benchmarks.soak.playing import BrokenRunError, Playing

MODULE = "benchmarks.soak"


def undisturbed(job: Job, folder: Path, data: Path, workers: int = 1) -> tuple[dict[str, str], int, float]:
    """What a run comes to that nothing happens to; its lines of metrics; and its seconds."""
    began = time.monotonic()
    playing = Playing(job, folder, data, None, workers)
    try:
        run = playing.play([], began)
        return outcome.of(run), playing.lines(), time.monotonic() - began
    finally:
        playing.close()


def disturbed(
    job: Job,
    number: int,
    planned: Sequence[faults.Fault],
    truth: tuple[dict[str, str], int, float],
    folder: Path,
    data: Path,
    workers: int,
    until: float,
) -> dict[str, Any]:
    """A round, as plain data."""
    began = time.monotonic()
    playing = Playing(job, folder, data, truth[1], workers)
    other: list[str] = []
    broken = None
    try:
        other = outcome.differences(truth[0], outcome.of(playing.play(planned, until)))
    except BrokenRunError as error:
        broken = str(error)
    finally:
        playing.close()
    return {
        "job": job.name,
        "round": number,
        "seconds": round(time.monotonic() - began, 1),
        "seconds undisturbed": round(truth[2], 1),
        "starts": playing.attempts,
        "compared": len(truth[0]),
        "different": other,
        "broken": broken,
        "lines": truth[1],
        "faults": [one.to_dict() for one in playing.inflicted],
        "track": [(round(second, 1), lines) for second, lines in playing.track],
    }


def soak(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Round after round until the time is used up, each task in its turn; undisturbed runs are apart."""
    left = options.seconds
    jobs = [JOBS[name] for name in options.jobs]
    truths: dict[str, tuple[dict[str, str], int, float]] = {}
    rounds: list[dict[str, Any]] = []
    numbers = dict.fromkeys(options.jobs, options.round or 0)
    while True:
        job = jobs[len(rounds) % len(jobs)]
        if job.name not in truths:
            print(f"{job.name}: undisturbed", flush=True)
            truths[job.name] = undisturbed(job, folder / f"{len(truths)}-undisturbed", folder / "data")
        number = numbers[job.name]
        numbers[job.name] += 1
        planned = faults.plan(
            options.seed,
            number,
            rows=job.rows,
            mounts=disk.can_mount(),
            slow=options.seconds >= 300,
            workers=options.workers,
            step=job.step,
        )
        place = folder / f"round-{len(rounds)}"
        found = disturbed(
            job,
            number,
            planned,
            truths[job.name],
            place,
            folder / "data",
            options.workers,
            time.monotonic() + left,
        )
        left -= found["seconds"]
        rounds.append(found)
        print(report.line(found), flush=True)
        if left <= 0 or options.round is not None:
            return rounds


def main(words: Sequence[str]) -> int:
    """Soak, write what was found, and say whether all went as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of rounds under faults")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--workers", type=int, default=2, help="the most processes of a run")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS), help="what is run")
    parser.add_argument("--round", type=int, default=None, help="only this round of a job")
    parser.add_argument("--out", type=Path, default=report.FOLDER, help="folder of soak.json, .md, .png")
    options = parser.parse_args(words)
    status = disk.in_own_namespace(MODULE, words)
    if status is not None:
        return status
    if not disk.can_mount():
        print("No file system can be mounted here: full disks and read-only folders are left out.")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        rounds = soak(options, Path(folder))
    report.write(rounds, report.Options(options.seconds, options.seed, options.workers), options.out)
    return 0 if report.good(rounds) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
