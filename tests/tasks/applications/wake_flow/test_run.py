"""The wake-flow run from the command line: what it leaves, and that a killed one resumes to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from tasks import Run
from tasks.command import cli
from tasks.folder import checkpoint
from tasks.folder.run import stage_name
from tests.needs import UNSHARE
from tests.tasks.applications.wake_flow.small import SMALL, words

pytestmark = pytest.mark.slow  # their common run
ROOT = Path(__file__).parents[4]
TIMES = ("seconds",)


def outcome(path: Path) -> dict:
    """All that a run found, without times of day and durations."""
    table = json.loads((path / "result.json").read_text())["table"]
    for row in table:
        row["ledger"].pop("seconds")
    return {
        "table": [{k: v for k, v in row.items() if k not in TIMES} for row in table],
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in Run.open(path).metrics()],
        "evaluation": {
            file.name: {
                name: field.numpy().tobytes() for name, field in checkpoint.load(file)["fields"].items()
            }
            for file in sorted((path / "evaluations").iterdir())
        },
        "weights": [
            (file.name, name, tensor.numpy().tobytes())
            for file in sorted((path / "checkpoints").iterdir())
            for name, tensor in checkpoint.load(file)["state"]["network"].items()
        ],
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawing) -> Path:
    """A finished run; its data folder is beside the runs."""
    folder = tmp_path_factory.mktemp("wake")
    line = words("--runs", str(folder / "runs"), "--data", str(folder / "data"))
    with pytest.MonkeyPatch.context() as patch, drawing():
        patch.chdir(folder)
        assert cli.main(line) == 0
    (path,) = (folder / "runs").iterdir()
    return path


def test_the_result_has_a_line_for_every_method_with_what_it_cost(finished):
    result = json.loads((finished / "result.json").read_text())
    rows = {row["method"]: row for row in result["table"]}
    assert tuple(rows) == SMALL.methods
    assert all(row["value"] > 0 and row["metric"] == "MAE" for row in rows.values())
    assert rows["SRC"]["rows"] == rows["NON"]["queries"] == rows["FO-SOL"]["queries"] == 0
    assert rows["NON"]["rows"] == 2 * (SMALL.frames - 1)
    assert rows["FO-SOL"]["rows"] == SMALL.steps * SMALL.batch * SMALL.unroll
    budgets = {name: int(name.partition("@")[2]) for name in rows if "@" in name}
    assert len(budgets) == 3
    for name, budget in budgets.items():  # a step, and a check and its repeats, may not fit in
        each = SMALL.unroll * SMALL.pace_of(name)[0]
        assert budget - 4 * each <= rows[name]["rows"] <= budget
        assert rows[name]["extra"]["steps"] == rows[name]["rows"] // each - rows[name]["queries"]
    assert rows["TAN-SOL@24"]["extra"]["replays"] == SMALL.replays * rows["TAN-SOL@24"]["extra"]["steps"]
    assert not any("replays" in row["extra"] for name, row in rows.items() if name != "TAN-SOL@24")
    queries = rows["ZO-SOL"]["queries"]
    assert queries >= SMALL.steps * SMALL.zeroth_order.coordinates  # and those of the evaluator's check
    assert rows["ZO-SOL"]["rows"] == (SMALL.steps + queries) * SMALL.batch * SMALL.unroll


def test_the_report_holds_its_pictures_and_the_folder_has_them_too(finished):
    page = (finished / "report.html").read_text()
    for kind, pattern, start in (("png", "*.png", b"\x89PNG"), ("webp", "*.webp", b"RIFF")):
        pictures = [path for path in finished.glob(pattern) if path.name != "first.png"]
        assert page.count(f"data:image/{kind};base64,") == len(pictures) > 0
        assert all(picture.read_bytes().startswith(start) for picture in pictures)
    assert "ZO-SOL" in page
    assert "://" not in page  # it opens offline


def test_a_first_picture_comes_before_most_is_trained(finished):
    """Of the solver, NON and TAN-SOL: the first method in the loop."""
    picture, last = finished / "first.png", finished / "evaluations"
    assert picture.read_bytes().startswith(b"\x89PNG")
    later = [file for file in last.iterdir() if file.stat().st_mtime > picture.stat().st_mtime]
    assert {file.stem.replace("__", "/") for file in later} == {
        stage_name(0, name) for name in SMALL.methods[SMALL.methods.index("TAN-SOL@24") + 1 :]
    }


@pytest.mark.slow
def test_trajectories_are_kept_where_they_are_asked_for(finished, tmp_path):
    places = "--runs", str(tmp_path / "runs"), "--data", str(finished.parents[1] / "data")
    assert cli.main(words(*places, "--trajectories", methods=("SRC", "NON"))) == 0
    (path,) = (tmp_path / "runs").iterdir()
    with h5py.File(path / "trajectories-seed-0.h5") as file:
        assert sorted(file["velocity"]) == ["NON", "SRC", "reference"]
        assert file["velocity/NON"].shape == (4, SMALL.horizon + 1, 2, 2 * SMALL.width, SMALL.width)


@pytest.mark.slow
def test_the_same_run_again_takes_the_reference_from_its_file_and_finds_the_same(finished, tmp_path, capsys):
    line = words("--runs", str(tmp_path / "runs"), "--data", str(finished.parents[1] / "data"))
    assert cli.main(line) == 0
    assert "Reused reference flows" in capsys.readouterr().out
    (again,) = (tmp_path / "runs").iterdir()
    assert outcome(again) == outcome(finished)


@pytest.mark.slow
@pytest.mark.needs("mounts")
def test_a_run_takes_the_reference_from_a_folder_that_it_cannot_write(finished, tmp_path):
    data, here = finished.parents[1] / "data", tmp_path / "Läufe von heute"
    here.mkdir()
    few = words("--data", str(data), methods=("NON large", "TAN-SOL@24"))
    mounted = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/file" && exec "$@"'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", mounted, str(data), sys.executable, "-m", "tasks.command.cli", *few],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"Reused reference flows {data}" in done.stdout
    (again,) = (here / "runs").iterdir()
    rows = {
        path: {row["method"]: row["value"] for row in json.loads((path / "result.json").read_text())["table"]}
        for path in (finished, again)
    }
    assert rows[again] == {name: rows[finished][name] for name in ("NON large", "TAN-SOL@24")}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["non", "zo-sol"])
def test_a_killed_run_resumes_to_the_bits_of_an_undisturbed_one(finished, tmp_path, stage):
    line = words("--runs", str(tmp_path / "runs"), "--data", str(finished.parents[1] / "data"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.command.cli", *line],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while not (metrics := list(tmp_path.glob("runs/*/metrics.jsonl"))) or (
        f'"stage": "seed-0/{stage}", "step": 3' not in metrics[0].read_text()
    ):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < end, "never got to the stage"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = (tmp_path / "runs").iterdir()
    assert not (path / "result.json").exists()
    assert cli.main(["resume", str(path)]) == 0
    assert outcome(path) == outcome(finished)
