"""The tasks' long presets on two processes, of which one is killed in the middle, each in its turn.

python -m benchmarks.soak.presets [TASK ...]

Networks and settings are those of `small`, whose data are made here. Only what says how long is cut (steps,
images, flows, ZO-GraSP's directions), and the number of threads: two processes on two cores have one each.
Evaluators are named, since "auto" goes by measured times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.protocol import RESULTS
from benchmarks.soak import report
from benchmarks.soak.__main__ import disturbed, undisturbed
from benchmarks.soak.faults import Fault
from benchmarks.soak.jobs import Job, options, settings
from tasks.runs.machine import machine, versions

WAKE = Job(
    "wake-flow, small",
    "wake-flow",
    options(
        "small",
        methods=("SRC", "NON", "ZO-SOL", "NON large", "TAN-SOL"),
        non_steps=20,
        zo_steps=6,
        large_non_steps=6,
        large_steps=4,
        horizon=20,
        train_reynolds=(120.0, 480.0),
        validation_reynolds=(200.0,),
        test_reynolds=(340.0,),
        extrapolated_reynolds=(),
        test_starts=1,
        validation_starts=1,
        validate_every=10,
        checkpoint_every=2,
        threads=1,
    ),
)
IMAGES = Job(
    "image-classification, small",
    "image-classification",
    settings(
        "small",
        methods=("deepzero", "fo"),
        train_images=256,
        validation_images=64,
        test_images=64,
        epochs=2,
        pruning_directions=12,
        evaluator="stacked",
        checkpoint_every=1,
    ),
)
SMOOTHING = Job(
    "denoised-smoothing, small",
    "denoised-smoothing",
    settings(
        "small",
        methods=("none", "mse", "zo-ds:dct", "deepzero", "student"),
        steps=200,
        student_steps=300,
        certify_images=5,
        n=1000,
        evaluator="stacked",
        checkpoint_every=10,
    ),
)
JOBS = {job.task: job for job in (WAKE, IMAGES, SMOOTHING)}
MIDDLE = {
    1: Fault("worker killed", at=0.6, delay=0.3, choice=0.99, workers=2),
    0: Fault("worker killed", at=0.45, delay=0.3, choice=0.0, workers=2),
}


def main(words: Sequence[str]) -> int:
    """Run each task undisturbed, and once for each process that is killed; 1 if some round ends otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(JOBS), help=f"of {', '.join(JOBS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of soak_presets.json")
    options = parser.parse_args(words)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        data = Path(folder) / "data"
        for task in options.tasks:
            job = JOBS[task]
            truth = undisturbed(job, Path(folder) / f"{task}-undisturbed", data)
            print(f"{job.name}: undisturbed, {truth[2]:.0f} s, {truth[1]} lines", flush=True)
            for rank, fault in MIDDLE.items():
                place = Path(folder) / f"{task}-{rank}"
                never = time.monotonic() + 1e6
                rounds.append(disturbed(job, rank, [fault], truth, place, data, 2, never))
                print(report.line(rounds[-1]), flush=True)
    content = {
        "command": " ".join(["python", "-m", "benchmarks.soak.presets", *words]),
        "machine": machine(),
        "versions": versions(),
        "settings": {name: " ".join(job.settings) for name, job in JOBS.items() if name in options.tasks},
        "rounds": rounds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "soak_presets.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
    return 0 if report.good(rounds) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
