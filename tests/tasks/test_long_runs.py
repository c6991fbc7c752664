"""What happens to a run in a long night: disks, signals, other versions."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from toy import Config, train_line

import tasks
from tasks import Progress, Run
from tasks.errors import CheckpointError, CheckpointWarning, Interrupted, StorageError
from tasks.folder import checkpoint, machine
from tests.tasks.made_runs import begun_run
from tests.tasks.test_cli import figures, only_run, wait_for
from tests.tasks.test_training import STAGE, Crash, CrashesAt, final_bits, lines, walk

HERE = Path(__file__).parent


@pytest.fixture
def new_run(tmp_path):
    return lambda: begun_run(tmp_path, "toy", "demo", Config(), [0])


@pytest.fixture
def truth(new_run):
    run = new_run()
    train_line(run, STAGE, 0, Config(), Progress())
    return run


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size` bytes: how a full disk looks to the one who writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Full(Progress):
    """From a step on every write fails with the error."""

    def __init__(self, step, number, monkeypatch):
        super().__init__()
        self.at, self.number, self.monkeypatch = step, number, monkeypatch

    def update(self, step, metrics=None):
        def fail(*arguments):
            raise OSError(self.number, os.strerror(self.number))

        if step == self.at:
            self.monkeypatch.setattr(os, "fsync", fail)


ERRORS = [  # (of the system, what the user is told to do)
    (errno.ENOSPC, "Free some space there."),
    (errno.EDQUOT, "Free some of your quota there."),
    (errno.EROFS, "Make it writable, or copy the run's folder elsewhere and resume that one."),
    (errno.EIO, "Mend that."),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("number", "mend"), ERRORS, ids=[os.strerror(number) for number, _ in ERRORS])
def test_a_disk_that_takes_no_checkpoint_leaves_the_one_before(truth, new_run, monkeypatch, number, mend):
    run = new_run()
    with monkeypatch.context() as patch, pytest.raises(StorageError) as caught:
        train_line(run, STAGE, 0, Config(), Full(7, number, patch))  # checkpoints after 3, 6, 9 and 12
    said = str(caught.value)
    assert os.strerror(number) in said and mend in said
    assert f"the checkpoint of {STAGE} after step 9" in said
    assert "The last good state is that after step 6 of 12." in said
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["seed-0__zo-sol.pt"]
    train_line(run, STAGE, 0, Config(), Progress())
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)


def test_a_disk_that_takes_no_first_checkpoint_says_that_the_stage_starts_anew(truth, new_run):
    run = new_run()
    with (
        largest_file(2000),
        pytest.raises(StorageError, match="no checkpoint of seed-0/zo-sol yet") as caught,
    ):
        train_line(run, STAGE, 0, Config(), Progress())
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert "zo-sol.pt: expected to write" in str(caught.value)
    assert list((run.path / "checkpoints").iterdir()) == []
    train_line(run, STAGE, 0, Config(), Progress())
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)


def test_a_disk_that_fills_just_after_a_checkpoint_does_not_deny_it(truth, new_run, monkeypatch):
    run = new_run()

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path / "calls.json"))

    with monkeypatch.context() as patch:
        patch.setattr("tasks.folder.row_counts.keep_sizes", full)
        with pytest.raises(StorageError, match="The last good state is that after step 3 of 12"):
            train_line(run, STAGE, 0, Config(), Progress())
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["seed-0__zo-sol.pt"]
    train_line(run, STAGE, 0, Config(), Progress())
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)


def test_metrics_that_the_disk_does_not_take_stop_the_run_and_repeat_no_line(truth, new_run):
    run = new_run()
    with pytest.raises(Crash):
        train_line(run, STAGE, 0, Config(), CrashesAt(6))
    size = (run.path / "metrics.jsonl").stat().st_size
    with largest_file(size + 50), pytest.raises(StorageError, match=f"the metrics of {STAGE}, step "):
        train_line(run, STAGE, 0, Config(), Progress())
    train_line(run, STAGE, 0, Config(), Progress())
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)


def test_a_file_in_the_place_of_the_folder_is_a_sentence(new_run):
    run = new_run()
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").touch()
    with pytest.raises(StorageError, match=r"checkpoints.*: expected to write the checkpoint"):
        walk(run)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
script, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_the_console_script_on_a_full_disk_says_how_to_go_on_and_does(toy, tmp_path):
    assert toy("run", "toy", "--runs", "truth") == 0
    (truth,) = (tmp_path / "truth").iterdir()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(HERE / "toy_cli.py"), "run", "toy"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{HERE.parent.parent}:{HERE}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    path = only_run(tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(
        r"blackbox: \S+seed-0__\S+\.pt: expected to write .*, got 'File too large'\. .*"
        rf"Resume with: blackbox resume {path.relative_to(tmp_path)}\n",
        done.stderr,
    ), done.stderr
    assert toy("resume", str(path)) == 0
    assert figures(path) == figures(truth)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_checkpoint_is_refused_and_the_stage_trained_anew_without_it(truth, new_run, damage):
    run = new_run()
    with pytest.raises(Crash):
        train_line(run, STAGE, 0, Config(), CrashesAt(11))
    (file,) = (run.path / "checkpoints").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-100] if damage == "truncated" else content[:-1] + b"?")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"{file}: .* delete {file} to train this stage anew"):
            train_line(run, STAGE, 0, Config(), Progress())
    file.unlink()
    (file.parent / f".{file.name}.1.tmp").touch()  # of a process that was killed while it wrote
    train_line(run, STAGE, 0, Config(), Progress())
    assert list(file.parent.iterdir()) == [file]
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)


def test_other_versions_are_named_when_training_goes_on(truth, new_run, limits):
    run = new_run()
    with pytest.raises(Crash):
        train_line(run, STAGE, 0, Config(), CrashesAt(7))
    others = machine.versions() | {"torch": "99.0"}
    mine = re.escape(machine.versions()["torch"])
    limits(versions_of_machine=lambda: others)
    with pytest.warns(CheckpointWarning, match=rf"got torch {mine} -> 99\.0\. .*not to the same bits"):
        train_line(run, STAGE, 0, Config(), Progress())
    limits(versions_of_machine=machine.versions)
    train_line(run, STAGE, 0, Config(), Progress())  # a finished stage is only loaded: no warning
    # a checkpoint that does not say is held against the run's own
    assert (
        machine.changes({"torch": "1", "numpy": "2"}, {"torch": "1", "scipy": "3", "numpy": "4"})
        == "numpy 2 -> 4"
    )


@pytest.mark.parametrize(("takes", "steps"), [(0, [1, 2, 4, 7, 9]), (1, [1, 9])])
def test_checkpoints_come_after_seconds_whatever_the_step_and_take_a_twentieth_of_the_time(
    new_run, limits, monkeypatch, takes, steps
):
    run, now, saved = new_run(), [0.0], []
    limits(clock_of_writes=lambda: now[0])
    save = checkpoint.save

    def slow(path, content):
        now[0] += takes
        saved.append(content["outcome"]["step"])
        save(path, content)

    def later(i):
        now[0] += 2 if i < 8 else 20

    monkeypatch.setattr(checkpoint, "save", slow)
    with pytest.raises(Crash):
        walk(run, steps=20, on_step=later, progress=CrashesAt(10), validate_every=100)
    assert saved == steps
    assert checkpoint.load(checkpoint.of_stage(run.path, STAGE))["outcome"]["step"] == 9


def test_news_of_the_end_twice_still_finishes_the_step(new_run):
    def twice(i):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Interrupted, match="Stopped at step 1 of 6"):
        walk(new_run(), on_step=twice)


def test_the_end_itself_after_the_news_stops_in_the_middle_of_the_step(new_run):
    reached = []

    def both(i):
        os.kill(os.getpid(), signal.SIGUSR1)
        reached.append("after the news")
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after the end")

    with pytest.raises(KeyboardInterrupt) as caught:
        walk(new_run(), on_step=both)
    assert not isinstance(caught.value, Interrupted) and reached == ["after the news"]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1])
def test_a_signal_outside_of_training_says_how_to_resume_too(toy, tmp_path, capsys, monkeypatch, number):
    from tasks import report

    before = signal.getsignal(number)
    write = report.write

    def signalled(run, problem):
        os.kill(os.getpid(), number)
        return write(run, problem)

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", signalled)
        assert toy("run", "toy") == 130
    path = only_run(tmp_path).relative_to(tmp_path)
    ways = f"Load with: tasks.load('{path}'). Resume with: blackbox resume {path}"
    assert capsys.readouterr().err == f"Stopped. {ways}\n"
    assert signal.getsignal(number) is before
    assert toy("resume", str(path)) == 0


@pytest.mark.slow
def test_the_news_of_a_cluster_leaves_a_folder_to_resume_and_status_130(toy, start_toy, tmp_path):
    process = start_toy("run", "toy", "--pause", "0.1")
    wait_for(lambda: any((tmp_path / "runs").glob("*/metrics.jsonl")), process)
    path = only_run(tmp_path)
    wait_for(lambda: (path / "metrics.jsonl").read_bytes().count(b"\n") >= 3, process)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(
        r"Stopping after this step; Ctrl-C again stops at once\.\n"
        r"Stopped at step \d+ of 12 of seed-0/sparse-cge\. Load with: tasks.load\(\S+\)\."
        r" Resume with: blackbox resume \S+\n",
        err,
    )


@pytest.fixture(scope="module")
def tensorboard():
    import tensorboard

    return tensorboard


def curves(path):
    """Stage -> figure -> [(step, value)], as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in {file.parent for file in path.rglob("events.out.tfevents.*")}:
        read = EventAccumulator(str(folder))
        read.Reload()
        tags = read.Tags()["scalars"]
        found[folder.relative_to(path).as_posix()] = {
            tag: [(event.step, event.value) for event in read.Scalars(tag)]
            for tag in tags
            if tag != "seconds"
        }
    return found


def expected_curves(run, stage):
    found = {}
    for line in run.metrics(stage):
        for name, value in line.items():
            if name not in ("stage", "step", "seconds"):
                rounded = torch.tensor(float(value)).item()  # event files keep single precision
                found.setdefault(name, []).append((line["step"], rounded))
    return found


def test_event_files_have_what_the_metrics_have_also_after_a_kill(tensorboard, new_run):
    run, killed = new_run(), tasks.TensorBoard()
    run.here.callbacks.append(killed)
    with pytest.raises(Crash):
        train_line(run, STAGE, 0, Config(), CrashesAt(9))
    run.here.callbacks[:] = [tasks.TensorBoard()]  # the first one's files were never closed
    train_line(run, STAGE, 0, Config(), Progress())
    truth = expected_curves(run, STAGE)
    assert {len(truth["loss"]), len(truth["queries"])} == {12}
    assert curves(run.path / "tensorboard") == {STAGE: truth}
    killed._writers[STAGE].close()  # its thread would write, minutes later, to a folder that is gone


@pytest.mark.slow
def test_event_files_come_by_an_option_of_the_console_script(tensorboard, toy, tmp_path):
    assert toy("run", "toy", "--steps", "2", "--tensorboard") == 0
    run = Run.open(only_run(tmp_path))
    stages = ("seed-0/sparse-cge", "seed-0/no-gradient")
    assert curves(run.path / "tensorboard") == {stage: expected_curves(run, stage) for stage in stages}


def test_without_tensorboard_the_option_says_how_to_install_it(toy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert toy("run", "toy", "--tensorboard") == 1
    assert "pip install 'blackbox-coupling[tensorboard]'" in capsys.readouterr().err
