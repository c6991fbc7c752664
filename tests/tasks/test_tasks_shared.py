"""Each of the three tasks by one process, by two, and by two that are stopped: one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import Run
from tasks.folder import checkpoint
from tests.tasks.applications.denoised_smoothing import small as smoothing
from tests.tasks.applications.image_classification import small as classification
from tests.tasks.applications.wake_flow import small as wake

ROOT = Path(__file__).parents[2]
TIMES = ("seconds",)


def smoothing_words(folder):
    methods = ("mse", "zo-ds", "zo-ae-ds", "deepzero", "student")
    return smoothing.words(folder, methods=methods, ratios="zo-grasp", evaluator="stacked", queries=4000)


def classification_words(folder):
    methods = ("deepzero", "rge", "sparse-rge", "fo-sparse-weight")
    return [*classification.words(methods=methods), "--runs", str(folder / "runs")]


def wake_words(folder):
    methods = ("ZO-SOL", "TAN-SOL", "chain", "identity")
    line = wake.words("--input-directions", "3", methods=methods, start="random")
    return [*line, "--runs", str(folder / "runs")]


# (words of the command line, a stage in the middle of which the run is stopped)
TASKS = {
    "denoised-smoothing": (smoothing_words, "deepzero"),
    "image-classification": (classification_words, "rge"),
    "wake-flow": (wake_words, "zo-sol"),
}


def start(folder, words):
    folder.mkdir(exist_ok=True)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.command.cli", *words],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]


def run_in(folder):
    (path,) = (folder / "runs").iterdir()
    return path


def outcome(folder):
    """All that a run found, without what a clock decides."""
    path = run_in(folder)
    table = json.loads((path / "result.json").read_text())["table"]
    for row in table:
        row["ledger"].pop("seconds", None)
    weights = {}
    for file in sorted((path / "checkpoints").rglob("*")):
        if file.is_file() and file.suffix != ".json":
            network = checkpoint.load(file)["state"]["network"]
            bits = b"".join(value.numpy().tobytes() for value in network.values())
            weights[str(file.relative_to(path))] = bits
    return {
        "table": [{k: v for k, v in row.items() if k not in TIMES} for row in table],
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in Run.open(path).metrics()],
        "weights": weights,
    }


def wait_for(stage, folder, process):
    """Until the run has taken a step of a stage."""
    end = time.monotonic() + 600
    while not any(stage in path.read_text() for path in folder.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_workers_come_to_one_workers_run_and_one_goes_on_where_two_were_stopped(task, tmp_path):
    words, stage = TASKS[task]
    alone, two, stopped = (tmp_path / name for name in ("alone", "two", "stopped"))
    for folder in (alone, two, stopped):
        folder.mkdir()
    finished(start(alone, words(alone)))
    truth = outcome(alone)
    finished(start(two, [*words(two), "--workers", "2"]))
    assert outcome(two) == truth
    process = start(stopped, [*words(stopped), "--workers", "2"])
    wait_for(stage, stopped, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode in (1, 130), err[-3000:]  # 1: the signal came between two stages
    finished(start(stopped, ["resume", str(run_in(stopped))]))
    assert outcome(stopped) == truth
