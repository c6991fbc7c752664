"""Runs that are always killed soon after their start: they end, with the bits of an undisturbed one.

All limits are in CPU seconds and all figures in rows, which a machine's load does not change.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.folder import row_counts
from tests.tasks.applications.denoised_smoothing import small as smoothing
from tests.tasks.applications.wake_flow import small as wake
from tests.tasks.test_kill_and_resume import ROOT, ended, outcome, own, started

MOST = 3  # times the attempts that would do if a kill lost nothing
LONG = """
import time
from dataclasses import dataclass

import torch

import tasks
from tasks.configuration import Count
from blackbox import ArraySpec, BlackBoxFunction


class Fine(BlackBoxFunction):
    inputs = (ArraySpec("z", shape=(2,)),)
    outputs = (ArraySpec("y", shape=(2,)),)

    def evaluate(self, z):
        end = time.process_time() + 0.05  # kills go by CPU seconds, which a machine's load does not change
        while time.process_time() < end:
            pass
        return z**3


class Long(tasks.Problem):
    "Data, steps, validation and test that each take as long as there is between two kills."

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("cge",)
        steps: Count = 2
        batch: Count = 4

    def box(self):
        return Fine()

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

    def data(self):
        wanted = torch.rand(300, 2, generator=torch.Generator().manual_seed(7)) - 0.5
        wanted = torch.cat((wanted[:200], Fine()(wanted[200:])))
        return tasks.Data.split(wanted, batch=self.config.batch, validation=80, test=80)

    def objective(self, network, wanted):
        return (self.box(network(wanted)) - wanted).square().mean(dim=1)
"""


def long(folder: Path) -> list[str]:
    (folder / "long.py").write_text(LONG, encoding="utf-8")
    return ["run", "long.py:Long"]


def new(folder: Path) -> list[str]:
    ended(started(["new", "pump"], folder))
    return ["run", "pump.py", "--steps", "60"]


PROBLEMS = {
    "long": long,
    "own": own,
    "new": new,
    "image demo": lambda folder: [
        *("run", "image-classification", "--methods", "deepzero", "fo", "--steps", "40"),
        *("--pruning-directions", "32", "--sparsity", "0.99"),
    ],
    "shapes": lambda folder: [
        *("run", "denoised-smoothing", "--preset", "shapes", "--methods", "none", "--certify-images", "3"),
        *("--n", "2000", "--evaluator", "loop"),
    ],
    "wake-flow": lambda folder: wake.words(methods=("NON", "TAN-SOL small", "ZO-SOL")),
    "denoised-smoothing": lambda folder: smoothing.words(folder, methods=("mse", "student", "deepzero")),
}


def seconds_of(words: list[str], folder: Path) -> float:
    """CPU seconds that a start takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended(started(words, folder), most=1500)  # of a clock on the wall, on a machine that has other work
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_run_that_is_always_killed_soon_after_its_start_ends_with_the_same_bits(tmp_path, name):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    words = PROBLEMS[name](whole)
    total = seconds_of(words, whole)
    start = seconds_of([*words, "--dry-run"], whole)
    work = round(0.5 * start) + 3  # no less than what is not divided, such as the export of a network
    limit, most = round(start) + work, 3 + MOST * (1 + round(total / work))
    words, attempts = PROBLEMS[name](killed), 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    while True:
        attempts += 1
        done = subprocess.run(
            [sys.executable, "-m", "tasks.command.cli", *words],
            cwd=killed,
            env=environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)),
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert attempts < most, f"killed after {limit} CPU seconds it does not end"
        begun = list((killed / "runs").glob("*/config.json"))  # it may be killed while it makes the folder
        words = ["resume", str(begun[0].parent.relative_to(killed))] if begun else words
    assert outcome(killed) == outcome(whole)
    asked = {folder: row_counts.read(next((folder / "runs").iterdir()))["rows"] for folder in (whole, killed)}
    assert asked[killed] <= 2 * asked[whole], f"in {attempts} attempts"
