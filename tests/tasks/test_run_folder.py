import errno
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import Row, Run
from tasks.command.cli import main
from tasks.errors import RunFolderError, RunLockedError
from tasks.folder import atomic
from tasks.folder.place import discard
from tasks.folder.result import Result
from tasks.rows.run_ledger import calls_noted
from tests.tasks.made_runs import begun_run
from tests.tasks.toy import Line


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    sizes: tuple[int, ...] = (1, 2)


def test_what_killed_processes_left_is_removed_by_who_goes_on_with_a_run(tmp_path):
    run = begun_run(tmp_path, "toy", "demo", Settings(), range(1))
    ended = subprocess.Popen(["true"])
    ended.wait()
    (run.path / "evaluations").mkdir()
    left = [run.path / f".result.json.{ended.pid}.tmp", run.path / f"evaluations/.a.{ended.pid}.tmp"]
    stays = [run.path / f".result.json.{os.getppid()}.tmp", run.path / "mine.tmp", run.path / ".other.tmp"]
    for path in left + stays:
        path.touch()
    with run.lock():
        assert [path.exists() for path in left + stays] == [False] * 2 + [True] * 3


def test_a_run_is_found_again_as_it_was_made(tmp_path):
    made = begun_run(
        tmp_path / "new" / "runs", "wake-flow", "demo", Settings(5), range(2), command=["blackbox", "run"]
    )
    found = Run.open(made.path)
    assert found == made
    assert made.path.name.startswith("wake-flow-demo-2")
    assert (found.task, found.preset, found.seeds) == ("wake-flow", "demo", (0, 1))
    assert found.configuration(Settings) == Settings(5)
    assert found.command == ("blackbox", "run")
    assert found.versions["torch"].startswith(torch.__version__.split("+")[0])
    assert not found.finished


def test_a_run_is_a_value_and_what_a_process_has_of_it_is_shared(tmp_path):
    run = begun_run(tmp_path, "t", "p", Settings(), [0])
    run.choose({"steps": 7})
    chosen = run.reread()
    assert run.chosen == {} and run.config["steps"] == 3
    assert chosen.chosen == {"steps": 7} and chosen.config["steps"] == 7
    assert run.reread() == Run.open(run.path) == chosen
    assert chosen.here is run.here is run.reread().here is run.absolute().here
    content = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(content | {"here": {}}))
    with pytest.raises(RunFolderError, match="here"):
        Run.open(run.path)


def test_the_data_folder_is_found_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = begun_run(tmp_path / "runs", "t", "p", Settings(), [0], data=Path("my data"))
    monkeypatch.chdir("/")
    assert Run.open(run.path).data == str(tmp_path.resolve() / "my data")


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    paths = {begun_run(tmp_path, "t", "p", Settings(), [0]).path for _ in range(5)}
    assert len(paths) == 5


def test_what_is_no_run_is_refused_with_a_sentence(tmp_path, run):
    with pytest.raises(RunFolderError, match="no such folder"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"without config\.json"):
        Run.open(tmp_path)
    config = run.path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"format": 4', '"format": 99'))
    with pytest.raises(RunFolderError, match="expected format 4, got 99"):
        Run.open(run.path)
    config.write_text(text.replace('"preset"', '"preseT"'))
    with pytest.raises(RunFolderError, match="Did you mean 'preset'"):
        Run.open(run.path)
    for cut in (0, 1, len(text) // 2):
        config.write_text(text[:cut])
        with pytest.raises(RunFolderError, match="expected JSON"):
            Run.open(run.path)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "calls/0", "picture-1.png", "journal"])
def test_links_in_a_folder_are_followed_by_nothing(tmp_path, run, name):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).symlink_to(precious)
    with pytest.raises(
        RunFolderError, match=rf"{name}: expected .* got a link to {precious}. Put a copy of what it leads to"
    ):
        found = Run.open(run.path)
        with found.lock(), calls_noted(found.path, [box := Line()]):
            box(np.ones((2, 1)))
            found.log("a", 1, loss=1.0)
    assert precious.read_text() == "mine"


def test_metrics_come_back_in_order_with_nan_for_what_was_not_finite(run):
    run.log("a", 1, loss=0.1 + 0.2, queries=7)
    run.log("b", 1, loss=math.nan)
    run.log("a", 2, loss=math.inf, note="x")
    assert run.metrics("a")[0] == {"stage": "a", "step": 1, "loss": 0.1 + 0.2, "queries": 7}
    assert [line["stage"] for line in run.metrics()] == ["a", "b", "a"]
    assert math.isnan(run.metrics("b")[0]["loss"])
    assert math.isnan(run.metrics("a")[1]["loss"])
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("torn", [b"{", b'{"stage": "a", "st', b'{"stage": "a", "step": 3, "loss": 1}'])
def test_a_torn_last_line_is_neither_read_nor_glued_to_the_next(run, torn):
    run.log("a", 1, loss=1.0)
    run.log("a", 2, loss=2.0)
    with open(run.path / "metrics.jsonl", "ab") as stream:
        stream.write(torn)
    assert [line["step"] for line in run.metrics()] == [1, 2]
    run.log("a", 3, loss=3.0)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(run):
    run.log("a", 1, loss=1.0)
    with open(run.path / "metrics.jsonl", "ab") as stream:
        stream.write(b"rubbish\n")
    run.log("a", 2, loss=1.0)
    with pytest.raises(RunFolderError, match="line 2"):
        run.metrics()


def test_truncating_drops_later_lines_of_one_stage_and_a_torn_one(run):
    for step in range(4):
        run.log("a", step, loss=0.1 * step)
        run.log("b", step, loss=1.0)
    before = (run.path / "metrics.jsonl").read_bytes().splitlines()
    with open(run.path / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"stage": "b"')
    run.truncate_metrics("a", 1)
    wanted = [line for line in before if b'"a"' not in line or json.loads(line)["step"] <= 1]
    assert (run.path / "metrics.jsonl").read_bytes().splitlines() == wanted
    run.truncate_metrics("b", -1)
    assert [line["stage"] for line in run.metrics()] == ["a", "a"]


def test_a_second_process_is_refused_and_told_who_holds_the_run(run):
    told, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks beside threads
        holder = os.fork()
    if not holder:
        try:
            with Run.open(run.path).lock():
                os.write(tell, b"in")
                time.sleep(600)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        assert os.read(told, 2) == b"in"
        with (
            pytest.raises(RunLockedError, match=f"process {holder} on {socket.gethostname()} is"),
            run.lock(),
        ):
            pass
    finally:
        os.close(told)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    with run.lock():  # freed by the kill
        assert (run.path / ".lock").read_text() == f"{os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_and_a_way_out(run, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(RunFolderError, match=r"that locks files, got .*--runs"), run.lock():
        pass


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")

    def fill(stream):
        stream.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic.write(path, fill)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_of_the_disk_names_the_file_and_not_the_temporary_one(tmp_path):
    def fill(stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        atomic.write(tmp_path / "file", fill)
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(FileNotFoundError) as caught:
        atomic.write_bytes(tmp_path / "none" / "file", b"")
    assert caught.value.filename == str(tmp_path / "none" / "file")


def _write_forever(path, ready):
    number = 0
    while True:
        atomic.write_bytes(path, bytes([number % 256]) * 300_000)
        ready.set()
        number += 1


@pytest.mark.slow
def test_a_reader_sees_whole_files_only_also_after_a_kill(tmp_path):
    path = tmp_path / "file"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    writer = context.Process(target=_write_forever, args=(path, ready), daemon=True)
    writer.start()
    assert ready.wait(60)
    contents = set()
    for _ in range(100):
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
        contents.add(content[0])
    writer.kill()
    writer.join()
    assert len(contents) > 1  # it was being rewritten meanwhile
    assert len(set(path.read_bytes())) == 1


def test_files_are_as_readable_as_the_umask_lets_them_be(tmp_path):
    before = os.umask(0o027)
    try:
        atomic.write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_result_comes_back_as_it_was_written(run):
    rows = [
        Row(
            "ZO-SOL", 0, "MAE", 0.25, "m/s", rows=10, queries=5, seconds=1.5, extra={"steps": 3, "note": "x"}
        ),
        Row("NON", 0, "MAE", None),
    ]
    result = run.finish(rows)
    assert run.finished
    assert Result.read(run.path) == result
    assert result.machine["cores"] == len(os.sched_getaffinity(0))
    assert result.started == run.started <= result.finished
    replace(result, table=(replace(rows[0], value=math.nan),)).write(run.path)
    assert Result.read(run.path).table[0].value is None


def test_a_result_of_another_schema_or_none_is_refused(run):
    with pytest.raises(RunFolderError, match="blackbox resume"):
        Result.read(run.path)
    run.finish([Row("none", 0, "error", 1.0)])
    path = run.path / "result.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(RunFolderError, match="expected schema 1, got 2"):
        Result.read(run.path)
    path.write_text("{")
    with pytest.raises(RunFolderError, match="expected JSON"):
        Result.read(run.path)


def test_only_a_run_that_was_not_begun_is_discarded(tmp_path):
    begun, fresh = (begun_run(tmp_path, "toy", "demo", Settings(), [0]) for _ in range(2))
    begun.log("seed-0/a", 1, loss=0.5)
    with fresh.lock():
        pass
    assert not discard(begun.path) and begun.metrics()
    assert discard(fresh.path) and not fresh.path.exists()
    saved = begun_run(tmp_path, "toy", "demo", Settings(), [0])
    (saved.path / "checkpoints" / "a").write_bytes(b"")
    assert not discard(saved.path) and saved.path.is_dir()
    assert not discard(fresh.path)  # gone already: no error in the place of why it was refused


def test_a_folder_of_version_0_2_0_is_refused_in_a_sentence(tmp_path, capsys):
    run = begun_run(tmp_path, "toy", "demo", Settings(), [0])
    content = json.loads((run.path / "config.json").read_text()) | {"format": 3}
    (run.path / "config.json").write_text(json.dumps(content))
    assert main(["resume", str(run.path)]) == main(["report", str(run.path)]) == 2
    sentence = "expected format 4, got 3. Use the version of this package that wrote it"
    assert capsys.readouterr().err.count(sentence) == 2
