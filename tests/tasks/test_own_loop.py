"""A loop of one's own by `tasks.own_run` and `train`: its folder resumes and reports as any other."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
from tasks import Run
from tasks.errors import ProblemError, RunLockedError
from tasks.running import own_loop
from tests.tasks.made_runs import begun_run
from tests.tasks.test_cli import figures, only_run, wait_for

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import time
from dataclasses import dataclass

import torch

import tasks
from tasks.errors import RunLockedError
from toy import Line


@dataclass(frozen=True)
class Settings:
    steps: int = 12


def main():
    settings = Settings(int(sys.argv[2]) if len(sys.argv) > 2 else 12)
    with tasks.own_run("line", settings, seeds=(0, 1)) as run:
        rows = []
        for seed in run.seeds:
            torch.manual_seed(seed)
            box, network = Line(), torch.nn.Linear(1, 1)
            optimizer = torch.optim.Adam(network.parameters(), lr=0.1)

            def step(i):
                time.sleep(float(sys.argv[1]))
                x = torch.rand(8, 1)  # of the global generator, which the loop restores
                optimizer.zero_grad()
                loss = (box.call(x) - network(x)).square().mean()
                loss.backward()
                optimizer.step()
                return {"loss": loss.item()}

            outcome = tasks.methods.train(
                run,
                f"seed-{seed}/adam",
                steps=settings.steps,
                step=step,
                state={"network": network, "optimizer": optimizer},
                model="network",
                validate=lambda: (network.weight - 2).abs().item(),
                validate_every=3,
                boxes=[box],
            )
            rows.append(tasks.Row.of(outcome, {"slope's error": (network.weight - 2).abs().item()}))
        run.finish(rows)


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script(tmp_path):
    """Starts the script, or the console script, in a process of its own."""
    (tmp_path / "own_loop.py").write_text(SCRIPT)
    started = []

    def start(*words, **environment):
        own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/tasks'}", "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_a_killed_loop_of_ones_own_resumes_to_the_same_bits_and_reports(script, tmp_path):
    out = finished(script("own_loop.py", "0"))
    assert "slope's error" in out and re.search(r"Report: \S+/runs/line-own-", out)
    (tmp_path / "runs").rename(tmp_path / "truth")
    (truth,) = (tmp_path / "truth").iterdir()
    process = script("own_loop.py", "0.1")
    for lines in (8, 22):  # in the first stage, and in the second
        wait_for(lambda n=lines: written(tmp_path) >= n, process)
        process.kill()
        process.wait()
        path = only_run(tmp_path)
        assert not (path / "result.json").exists()
        process = script("-m", "tasks.command.cli", "resume", str(path))
    finished(process)
    assert figures(path) == figures(truth)
    table = json.loads((path / "result.json").read_text())["table"]
    assert [(row["method"], row["seed"], row["metric"]) for row in table] == [
        ("adam", 0, "slope's error"),
        ("adam", 1, "slope's error"),
    ]
    assert [row["rows"] for row in table] == [96, 96]  # also those that the killed processes ran
    (path / "report.html").unlink()
    finished(script("-m", "tasks.command.cli", "report", str(path)))
    assert "What the black boxes counted" in (path / "report.html").read_text()
    assert list(tasks.load(path).table["seed"]) == [0, 1]


def written(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/*/metrics.jsonl"))


@pytest.mark.slow
def test_a_signal_ends_it_with_the_line_to_resume_and_other_settings_are_refused(script, tmp_path):
    process = script("own_loop.py", "0.1")
    wait_for(lambda: written(tmp_path) >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(
        r"Stopping after this step; .*\n"
        r"Stopped at step \d+ of 12 of seed-0/adam\. Resume with: blackbox resume runs/line-own-\S+\n",
        err,
    )
    path = only_run(tmp_path)
    process = script("own_loop.py", "0", "13", BLACKBOX_RUN=str(path))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "got others: steps 12 (now 13)" in err


@pytest.mark.slow
def test_a_script_from_elsewhere_is_not_executed_without_trust(script, tmp_path):
    process = script("own_loop.py", "0.1")
    wait_for(lambda: written(tmp_path) >= 5, process)
    process.kill()
    process.wait()
    path = only_run(tmp_path)
    other = {"XDG_STATE_HOME": str(tmp_path / "other")}
    refused = script("-m", "tasks.command.cli", "resume", str(path), **other)
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 2 and f"to execute {tmp_path / 'own_loop.py'} 0.1." in err
    several = script("-m", "tasks.command.cli", "resume", str(path), "--workers", "2")
    assert "--workers: expected 1 for a run of a script" in several.communicate(timeout=60)[1]
    finished(script("-m", "tasks.command.cli", "resume", str(path), "--trust", **other))
    assert Run.open(path).finished


@pytest.fixture
def settings():
    from tests.tasks.conftest import Settings

    return Settings()


def test_a_block_without_a_result_is_an_error(tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=r"expected run\.finish\(rows\) before the end of the block"):
        with tasks.own_run("line", settings):
            pass
    assert list((tmp_path / "runs").iterdir()) == []  # nothing was begun
    with pytest.raises(ZeroDivisionError):
        with tasks.own_run("line", settings) as run:
            run.log("seed-0/adam", 1, loss=1.0)
            raise ZeroDivisionError
    assert run.path.is_dir() and not run.finished


def test_a_line_of_the_table_needs_a_named_stage_and_a_figure():
    from tasks.problem.trained import TrainingOutcome

    row = tasks.Row.of(TrainingOutcome("seed-3/my-method"), {"error": float("nan"), "speed": 2}, unit="m")
    assert (row.method, row.seed, row.metric, row.value, row.unit) == ("my-method", 3, "error", None, "m")
    assert row.extra["speed"] == 2
    error, speed = tasks.RowMean([1.0, float("nan"), 3.0]), tasks.RowMean([5.0])
    row = tasks.Row.of(TrainingOutcome("seed-3/my-method"), {"error": error, "speed": speed})
    assert row.value == 2.0 and row.extra["speed"] == 5.0
    assert row.failed == {"error": 1, "speed": 0}
    for stage, figures_found in (("adam", {"error": 1.0}), ("seed-0/adam", {})):
        with pytest.raises(ValueError, match="expected a stage named like"):
            tasks.Row.of(TrainingOutcome(stage), figures_found)
    for name in ("steps", "method", "seed", "rows", "queries", "seconds", "time"):  # which tables have, too
        for named in ({"error": 1.0, name: 7}, {name: 7}):
            with pytest.raises(ProblemError, match=f"names than the training's own .*, got '{name}'"):
                tasks.Row.of(TrainingOutcome("seed-0/adam"), named)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)], ids=repr)
def test_a_single_number_of_any_library_is_a_figure(value):
    from tasks.problem.trained import TrainingOutcome

    assert tasks.Row.of(TrainingOutcome("seed-0/mine"), {"error": value}).value == 0.5
    assert tasks.Row.of(TrainingOutcome("seed-0/mine"), {"error": "lost"}).value is None


@pytest.mark.slow
def test_the_loop_on_the_page_runs(script, tmp_path):
    *_, code = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/guide/your_own_problem.md").read_text(), flags=re.DOTALL
    )
    (tmp_path / "line.py").write_text(code)
    assert "error of the slope" in finished(script("line.py"))
    assert (only_run(tmp_path) / "report.html").exists()


def test_a_run_that_another_process_works_on_is_not_discarded(tmp_path, monkeypatch):
    run = begun_run(tmp_path, "pump", "own", tasks.Config(), [0], script=str(tmp_path / "pump.py"))
    monkeypatch.setenv(own_loop.VARIABLE, str(run.path))
    with run.lock(), pytest.raises(RunLockedError), tasks.own_run("pump", tasks.Config()):
        pass
    assert (run.path / "config.json").is_file()
