"""Every shipped problem and a user's own file, killed and resumed: the bits of an undisturbed run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import Run
from tasks.folder import checkpoint
from tests.tasks.applications.denoised_smoothing import small as smoothing
from tests.tasks.applications.image_classification import small as images
from tests.tasks.applications.wake_flow import small as wake

ROOT = Path(__file__).parents[2]
OWN = '''
from dataclasses import dataclass

import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction


class Wave(BlackBoxFunction):
    inputs = (ArraySpec("z", shape=(3,)),)
    outputs = (ArraySpec("y", shape=(3,)),)

    def evaluate_rows(self, z):
        return torch.as_tensor(z).sin().numpy()


class Steering(tasks.Problem):
    """A network says what to put into a wave."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("tangents", "sparse-cge")

    def box(self):
        return Wave()

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))

    def data(self):
        wanted = torch.rand(200, 3, generator=torch.Generator().manual_seed(7)) - 0.5
        return tasks.Data.split(wanted, batch=self.config.batch, validation=20, test=20)

    def objective(self, network, wanted):
        return (self.box(network(wanted)) - wanted).square().mean(dim=1)
'''


def own(folder: Path) -> list[str]:
    (folder / "steering.py").write_text(OWN, encoding="utf-8")
    return [
        "run",
        "steering.py:Steering",
        "--steps",
        "60",
        "--validate-every",
        "5",
    ]


PROBLEMS = {
    "own": own,
    "wake-flow": lambda folder: wake.words(methods=("NON", "TAN-SOL small", "ZO-SOL")),
    "image-classification": lambda folder: images.words(
        dataset="digits", methods=("deepzero", "fo"), steps=12
    ),
    "denoised-smoothing": lambda folder: smoothing.words(folder, methods=("mse", "student", "deepzero")),
}


def started(words: list[str], folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.command.cli", *words],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen, most: float = 300) -> None:
    """Waits for a process that succeeds, for so many seconds at most."""
    said, _ = process.communicate(timeout=most)
    assert process.returncode == 0, said


def lines(folder: Path) -> list[dict]:
    files = list(folder.glob("runs/*/metrics.jsonl"))
    whole = files[0].read_bytes().rpartition(b"\n")[0] if files else b""
    return [json.loads(line) for line in whole.splitlines()]


def outcome(folder: Path):
    """Final weights and optimiser, metrics and figures, without what a clock decides."""
    (path,) = (folder / "runs").iterdir()
    bits = {}
    for file in sorted((path / "checkpoints").iterdir()):
        for name, value in flat(checkpoint.load(file)["state"]):
            if isinstance(value, torch.Tensor) and "costs" not in name:
                bits[file.stem, name] = value.numpy().tobytes()
    metrics = [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in Run.open(path).metrics()
        if "loss" in line or "validation" in line
    ]
    table = json.loads((path / "result.json").read_text())["table"]
    figures = [
        (row["method"], row["seed"], row["value"], row["extra"], row["rows"], row["queries"]) for row in table
    ]
    return bits, metrics, figures


def flat(value, name=""):
    if isinstance(value, dict):
        for key, each in value.items():
            yield from flat(each, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for key, each in enumerate(value):
            yield from flat(each, f"{name}/{key}")
    else:
        yield name, value


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_that_is_killed_again_and_again_ends_with_the_bits_of_an_undisturbed_one(tmp_path, name):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    ended(started(PROBLEMS[name](whole), whole))
    total = len(lines(whole))
    words = PROBLEMS[name](killed)
    draws, kills = np.random.default_rng(5), 0
    for share in sorted(draws.uniform(0.1, 0.8, size=3)):
        process = started(words, killed)
        end = time.monotonic() + 240
        while process.poll() is None and len(lines(killed)) < share * total:
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.002)
        kills += process.poll() is None
        process.kill()
        process.communicate()
        (path,) = (killed / "runs").iterdir()
        words = ["resume", str(path.relative_to(killed))]
    assert kills >= 1
    ended(started(words, killed))
    assert outcome(killed) == outcome(whole)
