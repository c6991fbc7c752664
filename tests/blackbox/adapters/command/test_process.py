import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from blackbox.adapters.command import process
from tests.waiting import wait_until

SH = "/bin/sh"


def run(folder, script, timeout=None):
    process.run([SH, "-c", script], folder, dict(os.environ), timeout)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # a zombie is dead, only not buried yet
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_output_goes_to_files_and_input_is_empty(tmp_path):
    run(tmp_path, "cat; pwd; echo bad >&2")
    assert (tmp_path / "stdout.txt").read_text() == f"{tmp_path.resolve()}\n"
    assert (tmp_path / "stderr.txt").read_text() == "bad\n"


def test_a_status_comes_with_the_last_lines_of_stderr(tmp_path):
    script = "for i in $(seq 1 2000); do echo line $i >&2; done; printf 'caf\\303\\251 \\377' >&2; exit 3"
    with pytest.raises(RuntimeError) as caught:
        run(tmp_path, script)
    said = str(caught.value)
    assert said.startswith("sh ended with status 3; the last lines of its stderr: line 1994 | ")
    assert said.endswith("line 2000 | café \ufffd")


def test_frames_of_a_stack_hide_no_error_of_fortran(tmp_path):
    """What gfortran's programs print where a file is missing; without debug symbols a frame says nothing."""
    frames = "".join(f"#{n}  0x7f24b5f1d{n}42 in ???\\n" for n in range(9))
    error = "Fortran runtime error: Cannot open file 'a.nml': No such file or directory"
    printed = f"At line 7 of file b.f90\\n{error}\\n\\nError termination. Backtrace:\\n{frames}"
    script = f'printf "{printed}" >&2; exit 2'
    with pytest.raises(RuntimeError) as caught:
        run(tmp_path, script)
    said = f"stderr: At line 7 of file b.f90 | {error} | Error termination. Backtrace:"
    assert str(caught.value).endswith(said)

    with pytest.raises(RuntimeError, match="#8  0x7f24b5f1d842"):
        run(tmp_path, f"printf '{frames}' >&2; exit 2")  # there is nothing else


def test_what_a_program_says_on_stdout_is_told_where_stderr_is_empty(tmp_path):
    script = "echo; echo '*ERROR reading *CLOAD'; echo; echo '  Card image: 25,2'; exit 201"
    with pytest.raises(RuntimeError, match=r"the last lines of its stdout: \*ERROR reading \*CLOAD \| Card"):
        run(tmp_path, script)


@pytest.mark.parametrize(
    "script, words", [("exit 1", "it printed nothing."), ("kill -SEGV $$", "was ended by SIGSEGV")]
)
def test_other_endings(tmp_path, script, words):
    with pytest.raises(RuntimeError, match=words):
        run(tmp_path, script)


def test_stderr_that_the_program_made_a_link_of_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("the password")
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(RuntimeError, match=r"its stderr is gone"):
        run(folder, "rm stderr.txt; ln -s ../secret stderr.txt; exit 1")


@pytest.mark.quick_cases(1)
@pytest.mark.needs("linux")
@pytest.mark.parametrize("ends", ["time is up", "program ends", "we are interrupted"])
def test_no_process_of_the_group_is_left(tmp_path, ends):
    # the grandchild ignores SIGTERM and writes its number
    (tmp_path / "stubborn").write_text(
        "trap '' TERM; echo $$ > new; mv new pid; while true; do sleep 0.05; done"
    )
    script = "sh stubborn & while [ ! -f pid ]; do sleep 0.01; done; "
    number = tmp_path / "pid"
    if ends == "program ends":
        run(tmp_path, script + "exit 0")
    elif ends == "time is up":
        with pytest.raises(
            TimeoutError, match=r"sh ran longer than 1.5 s and was killed; it printed nothing"
        ):
            run(tmp_path, script + "wait", timeout=1.5)
    else:

        def interrupt():
            wait_until(number.exists)
            os.kill(os.getpid(), signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, script + "wait")
        finally:
            thread.join()
            signal.signal(signal.SIGINT, before)
    pid = int(number.read_text())
    wait_until(lambda: not alive(pid))


# leaves the process group, and loses its parent; ignores SIGTERM, writes its number
ESCAPE = "(setsid sh -c 'trap \"\" TERM; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 0.05; done' &) "
ESCAPE += "; while [ ! -f {0} ]; do sleep 0.01; done; "


@pytest.mark.needs("linux")
@pytest.mark.parametrize(
    "ends, error",
    [
        ("exit 0", None),
        ("exit 1", RuntimeError),
        pytest.param("sleep 60", TimeoutError, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_calls_setsid_ends_with_its_run(tmp_path, ends, error):
    number = tmp_path / "pid"
    with pytest.raises(error) if error else contextlib.nullcontext():
        run(tmp_path, ESCAPE.format(number) + ends, timeout=1.5)
    assert number.exists()
    wait_until(lambda: not alive(int(number.read_text())))


PARENT = """
import sys
import numpy as np
from blackbox import ArraySpec
from blackbox.adapters import CommandLine
x = [ArraySpec("x", ())]
files = {"input_files": {"x": "x.csv"}, "output_files": {"x": "y.csv"}}
box = CommandLine(["sh", "-c", sys.argv[1]], x, x, **files, scratch=sys.argv[2])
print(box(np.array(2.0)))
"""


@pytest.mark.slow
@pytest.mark.needs("linux")
def test_a_parent_that_is_killed_takes_its_programs_with_it(tmp_path):
    numbers = [tmp_path / "head", tmp_path / "escaped"]
    code = ESCAPE.format(numbers[1]) + f"echo $$ > {numbers[0]}; sleep 600"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code, str(tmp_path)])
    try:
        wait_until(lambda: all(number.exists() and number.read_text() for number in numbers), 120)
        pids = [int(number.read_text()) for number in numbers]
        assert all(alive(pid) for pid in pids)
        assert list(tmp_path.glob("blackbox-*"))
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))
    wait_until(lambda: not list(tmp_path.glob("blackbox-*")))


@pytest.mark.needs("linux")
def test_folders_of_a_killed_process_are_removed_but_for_those_that_it_took_back(tmp_path):
    gone, kept, other = tmp_path / "gone with the parent", tmp_path / "kept", tmp_path / "other"
    for folder in (gone, kept, other):
        (folder / "inside").mkdir(parents=True)
        (folder / "inside" / "file").touch()
    (gone / "inside").chmod(0o500)
    command = [sys.executable, "-I", "-S", process.leftovers.__file__, "no such mark"]
    words = f"+{gone}\n+{kept}\n-{kept}\n".encode()
    subprocess.run(command, input=words, check=True, timeout=60)
    assert sorted(tmp_path.iterdir()) == [kept, other]


@pytest.mark.needs("linux")
@pytest.mark.parametrize("name", ["two\nlines", "50%0A", "%25\n%"])
def test_folders_with_any_name_are_removed_with_a_process_that_is_killed(tmp_path, name):
    parent, ready = tmp_path / name, tmp_path / "ready"
    parent.mkdir()
    owner = os.fork()
    if owner == 0:
        try:
            with process.scratch_folder(parent, False):
                ready.touch()
                time.sleep(600)
        finally:
            os._exit(0)
    try:
        wait_until(ready.exists)
        assert list(parent.iterdir())
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    wait_until(lambda: not list(parent.iterdir()))


def test_a_forked_process_has_a_guard_of_its_own(tmp_path):
    """The parent's must not take the child for alive, nor the child's end for the parent's."""
    for name in ("before", "child", "after"):
        (tmp_path / name).mkdir()
    run(tmp_path / "before", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks beside threads
        child = os.fork()
    if not child:
        status = 1
        try:
            run(tmp_path / "child", "echo $BLACKBOX_RUN")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    run(tmp_path / "after", "echo $BLACKBOX_RUN")
    marks = [(tmp_path / name / "stdout.txt").read_text().split("/")[-3:-1] for name in ("child", "after")]
    assert marks[0][0] != marks[1][0]


@pytest.mark.needs("linux")
def test_a_program_that_runs_programs_ends_with_all_of_them(tmp_path):
    """What it runs carries a mark that begins with its own."""
    number = tmp_path / "pid"
    inner = f"BLACKBOX_RUN=${{BLACKBOX_RUN}}inner/0/ setsid sh -c 'echo $$ > {number}; sleep 60' & "
    run(tmp_path, inner + f"while [ ! -s {number} ]; do sleep 0.01; done")
    wait_until(lambda: not alive(int(number.read_text())))


@pytest.mark.slow
def test_the_program_is_asked_to_stop_before_it_is_killed(tmp_path):
    script = "trap 'echo tidy > tidied; exit 0' TERM; while true; do sleep 0.05; done"
    with pytest.raises(TimeoutError):
        run(tmp_path, script, timeout=1)
    assert (tmp_path / "tidied").read_text() == "tidy\n"


@pytest.mark.needs("linux")
def test_no_zombies_and_no_open_files_are_left(tmp_path, monkeypatch):
    started, start = [], subprocess.Popen

    def recorded(*arguments, **settings):
        started.append(start(*arguments, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recorded)
    run(tmp_path, "true")  # the first starts the guard
    started.clear()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        run(tmp_path, "true")
        with pytest.raises(RuntimeError):
            run(tmp_path, "false")
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(started) == 10
    for child in started:
        with pytest.raises(ChildProcessError):  # it has been waited for
            os.waitpid(child.pid, os.WNOHANG)


@pytest.mark.parametrize("content", [b"\x7fELF no program", b"echo without an interpreter\n"])
def test_a_program_that_cannot_be_started_is_an_error_of_the_system(content, tmp_path):
    (tmp_path / "program").write_bytes(content)
    (tmp_path / "program").chmod(0o700)
    with pytest.raises(OSError, match="a script whose first line names its interpreter"):
        process.run([str(tmp_path / "program")], tmp_path, {}, None)


def test_the_environment_is_what_is_given(tmp_path):
    process.run(["/usr/bin/env"], tmp_path, {"ONLY": "this one"}, None)
    given = (tmp_path / "stdout.txt").read_text().splitlines()
    assert [line for line in given if not line.startswith("BLACKBOX_RUN=")] == ["ONLY=this one"]


@pytest.mark.needs("linux")
def test_what_is_left_is_found_where_process_numbers_have_come_round(monkeypatch):
    left = subprocess.Popen(["sleep", "100"], env={process.leftovers.VARIABLE: "around/1/"})
    monkeypatch.setattr(process.leftovers, "_newest", lambda: left.pid)
    process.leftovers.end("around/1/", after=left.pid + 1)  # its head has the higher number
    assert left.wait(timeout=20) == -signal.SIGKILL


@pytest.mark.needs("linux")
def test_what_is_just_being_started_is_ended_too(monkeypatch):
    left = subprocess.Popen(["sleep", "100"], env={process.leftovers.VARIABLE: "starting/1/"})
    shown, marked = [], process.leftovers._marked

    def without_environment_at_first(entry, after):
        shown.append(entry)
        return ([], True) if len(shown) < 3 else marked(entry, after)

    monkeypatch.setattr(process.leftovers, "_marked", without_environment_at_first)
    process.leftovers.end("starting/1/", after=left.pid - 1)
    assert left.wait(timeout=20) == -signal.SIGKILL


@pytest.mark.needs("linux")
def test_a_process_without_an_environment_is_not_waited_for_long(monkeypatch):
    other = subprocess.Popen(["sleep", "100"], env={})
    monkeypatch.setattr(process.leftovers.os, "listdir", lambda folder: [str(other.pid)])
    process.leftovers.end("nobody/")
    assert process.leftovers._marked(b"\0BLACKBOX_RUN=nobody/", 0) == ([], True)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and still has its number
    assert process.leftovers._marked(b"\0BLACKBOX_RUN=nobody/", 0) == ([], False)
    assert other.wait() == -signal.SIGKILL


@pytest.mark.needs("linux")
def test_the_guard_is_not_waited_for(monkeypatch):
    """It looked like one that is just being started: each program of a second or more took 55 ms more."""
    process._guard.mark()
    guard = process._guard._process
    assert guard is not None
    monkeypatch.setattr(process.leftovers.os, "listdir", lambda folder: [str(guard.pid)])
    for _ in range(100):  # it is just being started itself
        found = process.leftovers._marked(b"\0BLACKBOX_RUN=nobody/", 0)
        if not found[1]:
            break
        time.sleep(0.005)
    assert found == ([], False)


def test_a_status_that_the_system_has_thrown_away_is_not_taken_for_success(tmp_path):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ChildProcessError):
            run(tmp_path, "sleep 0.2; echo; exit 3")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_limit_longer_than_the_system_can_count(tmp_path):
    run(tmp_path, "exit 0", timeout=1e10)
