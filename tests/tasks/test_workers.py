"""Several processes on one run: the weights of one, one folder, and what happens where one of them dies."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import Run
from tasks.errors import WorkersError
from tasks.running import together
from tasks.workers import group, launch
from tests.tasks.shared_runs import finished, outcome
from tests.tasks.test_cli import only_run, wait_for

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_write_one_run_with_the_bits_of_one(shared, truth, tmp_path):
    out = finished(shared("a", "run", "shared", "--workers", "2"))
    path = only_run(tmp_path / "a")
    assert outcome(tmp_path / "a") == truth
    assert {"config.json", "metrics.jsonl", "checkpoints", "result.json", "report.html"} <= set(
        os.listdir(path)
    )
    assert out.count("Run folder:") == 2 and out.count("Report:") == 1  # those of one process
    calls = json.loads((path / "result.json").read_text())["calls"]
    assert calls["exact"] and calls["rows"] > 0


@pytest.mark.slow
def test_the_causes_of_failed_rows_are_those_of_all_processes(shared, tmp_path):
    target = f"{Path(__file__).parent / 'problems.py'}:Steering"
    words = ("run", target, "--methods", "cge", "--limit", "0.4", "--chunk", "4")
    ledgers = []
    for name, more in (("alone", ()), ("both", ("--workers", "2"))):
        finished(shared(name, *words, *more))
        result = json.loads((only_run(tmp_path / name) / "result.json").read_text())
        ledgers.append(result["table"][0]["ledger"])
    alone, both = ledgers
    assert alone["rows_failed"] == sum(alone["causes"].values()) > 0
    # the base is evaluated by one process, and each query by one
    assert both["causes"] == alone["causes"] and both["first_failure"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(("method", "limit"), [("cge", "0.2"), ("tangents", "0.3")])
def test_a_batch_that_failed_as_a_whole_costs_the_same_steps_with_two_processes(
    shared, tmp_path, method, limit
):
    target = f"{Path(__file__).parent / 'problems.py'}:Steering"
    words = ("run", target, "--methods", method, "--limit", limit, "--batch", "1", "--steps", "12")
    told = []
    for name, more in (("alone", ()), ("both", ("--workers", "2"))):
        finished(shared(name, *words, "--chunk", "1", *more))
        lines = Run.open(only_run(tmp_path / name)).metrics()
        told.append([(line["loss"], line.get("lost_steps", 0)) for line in lines if "loss" in line])
    alone, both = told
    assert 0 < alone[-1][1] < 12
    assert str(both) == str(alone)  # NaN where all rows failed


@pytest.mark.slow
@pytest.mark.parametrize(("die_at", "die_rank"), [(0, 1), (7, 1), (11, 0)])
def test_a_process_that_is_killed_ends_the_run_and_others_resume_it(
    shared, truth, tmp_path, die_at, die_rank
):
    words = ["--die-at", str(die_at), "--die-rank", str(die_rank)]
    killed = shared("a", "run", "shared", "--workers", "3", *words)
    _, err = killed.communicate(timeout=300)
    assert killed.returncode not in (0, None)
    assert f"blackbox: process {die_rank} of 3 was killed" in err
    assert err.count("Resume with: blackbox resume") == 1  # by the first process, or for it
    if die_rank:
        assert "expected an answer of all 3" in err
    path = only_run(tmp_path / "a").relative_to(tmp_path / "a")
    finished(shared("a", "resume", str(path), "--workers", "2"))
    assert outcome(tmp_path / "a") == truth


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_after_the_same_step_and_one_process_goes_on(shared, truth, tmp_path, number):
    process = shared("a", "run", "shared", "--workers", "2", "--pause", "0.2")
    metrics = tmp_path / "a" / "runs"
    wait_for(lambda: any(path.stat().st_size for path in metrics.glob("*/metrics.jsonl")), process, 200)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    (command,) = set(re.findall(r"blackbox resume (\S+)", err))
    finished(shared("a", "resume", command))
    assert outcome(tmp_path / "a") == truth


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(shared, truth, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    before = (*torchrun, "--max-restarts=1")
    out = finished(shared("a", "run", "shared", "--die-at", "7", before=before))
    assert "Going on with runs" in out
    assert outcome(tmp_path / "a") == truth  # and there is one folder


def test_a_process_alone_asks_no_one():
    assert not group.is_member() and group.rank() == 0 and group.process_group() is None
    assert group.any_of(True) and not group.any_of(False)
    assert group.total(3, 4) == [3, 4]
    assert group.first_then_all(lambda: 5) == 5


@pytest.mark.parametrize(
    ("tasks", "number", "said"), [("2", "0", True), ("2", "1", False), ("1", "0", False)]
)
def test_the_first_of_several_tasks_of_srun_says_that_each_trains_alone(
    monkeypatch, capsys, tasks, number, said
):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    monkeypatch.setenv("SLURM_PROCID", number)
    with group.joined():
        pass
    assert ("srun started 2 tasks" in capsys.readouterr().err) == said


@pytest.mark.slow
def test_processes_that_do_not_find_each_other_say_so(shared, tmp_path):
    alone = {"RANK": "1", "WORLD_SIZE": "2", "BLACKBOX_STORE": str(tmp_path / "store")}
    process = shared("a", "run", "shared", "--timeout", "1", **alone)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "Process 1: expected to find 2 processes of this run" in err


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_was_left_in_the_environment_waits_no_longer_than_it_may(monkeypatch, rank):
    left = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorkersError, match=r"expected to find 2 processes.*unset RANK WORLD_SIZE"):
        with group.joined(0.5):
            pass


@pytest.mark.slow
def test_a_process_that_waits_for_others_says_so(shared):
    left = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    process = shared("a", "run", "shared", "--timeout", "8", **left)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "process 0 waits for the others of 2" in err and "got 'Timed out" in err


def test_only_a_restart_of_the_same_launch_goes_on_with_a_run(tmp_path, monkeypatch):
    for name in ("shared-demo-1", "shared-demo-2", "other-demo-1"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        together.note_launch(tmp_path / name)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "shared-demo-1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert together.restarted(tmp_path, "shared") is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert together.restarted(tmp_path, "shared") == tmp_path / "shared-demo-1"
    assert together.restarted(tmp_path, "other") is None
    assert together.restarted(tmp_path / "nowhere", "shared") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert str(os.getppid()) in (launch.launch_id() or "")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launch.launch_id() is None


PROGRAM = """
import os, signal, sys
from pathlib import Path
from tasks.workers import launch

if "RANK" not in os.environ:
    launch.GRACE = 1.0
    with launch.started([], 3):
        launch.meet(60)
        assert os.environ["RANK"] == "0"
        print(launch.store().parent)
        raise SystemExit(7)
launch.watch(lambda: None)
if os.environ["RANK"] == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
launch.meet(60)
signal.pause()
"""


def ended(folder, program):
    """A process of this program, when it has ended."""
    (folder / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, str(folder / "program.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
def test_the_others_end_when_the_first_does_and_one_that_hangs_is_killed(tmp_path):
    done = ended(tmp_path, PROGRAM)
    assert done.returncode == 7
    assert done.stderr == (
        "blackbox: process 1 of 3 did not end within 1 s after the first had, and was ended.\n"
    )
    assert not Path(done.stdout.strip()).exists()


@pytest.mark.slow
def test_one_that_ends_before_the_others_find_it_is_told(tmp_path):
    program = "import os\nfrom tasks.workers import group, launch\n"
    program += "if 'RANK' in os.environ:\n    raise SystemExit(5)\n"
    program += "with launch.started([], 2), group.joined(60):\n    pass"
    done = ended(tmp_path, program)
    assert "Process 0: expected to find 2 processes of this run, but process 1 ended with 5." in done.stderr
    assert done.returncode == 1


def test_fewer_than_one_worker_is_refused(toy, capsys):
    assert toy("run", "toy", "--workers", "0") == 2
    assert "--workers: expected 1 to " in capsys.readouterr().err
