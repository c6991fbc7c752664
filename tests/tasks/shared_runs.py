"""Runs of the problem whose queries are shared out: how they are waited for, and what they come to."""

from pathlib import Path

from tasks import Run
from tasks.folder import checkpoint
from tests.tasks.test_cli import only_run

PROGRAM = str(Path(__file__).parent / "toy_cli.py")


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def outcome(folder):
    """Weights and moments of the last checkpoint, metrics without what a clock decides."""
    path = only_run(folder)
    last = sorted((path / "checkpoints").iterdir())[-1]
    state = checkpoint.load(last)["state"]
    metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in Run.open(path).metrics()]
    bits = [value.numpy().tobytes() for value in state["network"].values()]
    moments = [part["exp_avg"].numpy().tobytes() for part in state["optimizer"]["state"].values()]
    return bits, moments, state["gradient"], metrics
