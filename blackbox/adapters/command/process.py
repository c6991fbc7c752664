"""One run of a program in a folder of its own: no shell, a time limit, and nothing of it left behind."""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blackbox.adapters.command import leftovers
from blackbox.ending import ended_by, stopped

STDIN, STDOUT, STDERR = "stdin.txt", "stdout.txt", "stderr.txt"
_GRACE = 2.0  # seconds between the wish to stop and the end
_LONGEST_WAIT = 0.02
_LONGEST_POLL = 2e6  # seconds; the system counts milliseconds in 32 bits
_QUICK = 1.0  # seconds in which process numbers cannot have come round
_TAIL = 4096  # bytes of stderr that are read for a message
_LINES = 8
_FRAME = re.compile(
    r"#\d+ +0x|/?[\w./+-]+\([\w.+]*\) ?\[0x"
)  # of a stack, which says nothing without symbols


def run(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout: float | None,
    stdin: bool = False,
    statuses: Collection[int] = (0,),
) -> None:
    """Run a program in a folder until it ends; its output goes to stdout.txt and stderr.txt there.

    The program is the head of a process group of its own. The rest of the group is killed in four cases: when
    the program ends; when its time is up (after a SIGTERM); when we are interrupted; and when the call for
    which we run in a thread ends (`blackbox.ending`). On Linux processes that have left the group are killed,
    too, and all are when this process dies.

    Args:
        arguments: the program and its arguments, handed over as they are.
        folder: where the program runs.
        environment: all environment variables of the program, but for BLACKBOX_RUN, which marks its
            processes.
        timeout: seconds that the program may take; None for any time.
        stdin: whether it reads the folder's stdin.txt as its standard input; else there is nothing to read.
        statuses: the exit statuses of success.

    Raises:
        TimeoutError: the program took longer than `timeout`.
        RuntimeError: the program ended with another status.
        OSError: the program could not be started.
    """
    program = Running(arguments, folder, environment, stdin)
    try:
        with ended_by(program.kill):
            ended = program.wait(timeout)
            if not ended:
                program.ask_to_stop()
    finally:
        status = program.end()
    if not ended:
        raise TimeoutError(f"{program.name} ran longer than {timeout:g} s and was killed{last_words(folder)}")
    if status not in statuses:
        raise RuntimeError(f"{program.name} {said(status)}{last_words(folder)}")


class Running:
    """A program that runs in a folder, from its start to `end`, which must be called; see `run`.

    Args:
        arguments: the program and its arguments, handed over as they are.
        folder: where the program runs.
        environment: all environment variables of the program, but for BLACKBOX_RUN.
        stdin: whether it reads the folder's stdin.txt as its standard input.

    Attributes:
        name: the name of the program.
        pid: the number of its process, and of its group.

    Raises:
        OSError: the program could not be started.
        RuntimeError: the call that wanted it has ended.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: bool = False
    ) -> None:
        self.name = Path(arguments[0]).name
        if stopped():
            raise RuntimeError(f"{self.name} was not started: the call that wanted it has ended.")
        self._mark, self._began = _guard.mark(), time.monotonic()
        environment = {**environment, leftovers.VARIABLE: self._mark}
        try:
            self._process = self._started(arguments, folder, environment, stdin)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                error.strerror = (
                    "expected a program for this machine, or a script whose first line names its "
                    "interpreter, such as #!/bin/sh, got neither"
                )
            raise
        self.pid = self._process.pid

    def _started(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: bool
    ) -> subprocess.Popen[bytes]:
        # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting.
        source = folder / STDIN if stdin else Path(os.devnull)
        out, err = folder / STDOUT, folder / STDERR
        with source.open("rb") as from_in, out.open("wb") as to_out, err.open("wb") as to_err:
            return subprocess.Popen(
                arguments,
                cwd=folder,
                env=environment,
                stdin=from_in,
                stdout=to_out,
                stderr=to_err,
                start_new_session=True,
            )

    def wait(self, timeout: float | None) -> bool:
        """Wait, and say whether the program ends within some seconds; None for any time."""
        return _wait(self.pid, timeout)

    def kill(self) -> None:
        """Kill what is in the program's group; `end` has still to be called."""
        _signal(self.pid, signal.SIGKILL)

    def ask_to_stop(self) -> None:
        """Ask the group to stop, and give it a little time."""
        _signal(self.pid, signal.SIGTERM)
        _wait(self.pid, _GRACE)

    def last_words(self, folder: Path) -> str:
        """Return the end of its output, for a message."""
        return last_words(folder)

    def end(self) -> int:
        """Kill what is left of the program, and what it has started; its exit status."""
        # Before the head is reaped: from then on its number could be another process's.
        self.kill()
        quick = time.monotonic() - self._began < _QUICK
        leftovers.end(self._mark, self.pid if quick else 0)
        return self._process.wait()


class _Guard:
    """A small process that ends the programs of this one when this one dies; it knows them by their marks.

    There is one for all runs. The alternative, a death signal that each program asks for before it starts,
    needs code between fork and exec, which can deadlock where there are threads, or another interpreter for
    every run (10 to 25 ms); and it does not reach the program's own children.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._prefix = ""
        self._numbers = itertools.count()

    def mark(self) -> str:
        """The mark of a new run. A program that runs programs itself puts its own mark before theirs."""
        with self._lock:
            self._ensure()
            return f"{self._prefix}{next(self._numbers)}/"

    def note(self, sign: str, folder: Path) -> None:
        """Ask for a folder to be removed when this process dies ("+"), or withdraw that ("-")."""
        with self._lock:
            self._ensure()
            if self._process is not None and self._process.stdin is not None:
                line = sign.encode() + leftovers.written(os.fsencode(folder)) + b"\n"
                with suppress(OSError):  # it was killed: the next run starts another
                    os.write(self._process.stdin.fileno(), line)

    def _ensure(self) -> None:
        if self._owner != os.getpid():  # the first run, or the first since a fork
            self._owner = os.getpid()
            self._prefix = f"{os.environ.get(leftovers.VARIABLE, '')}{secrets.token_hex(8)}/"
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes] | None:
        if sys.platform != "linux" or not sys.executable or getattr(sys, "frozen", False):
            return None  # in a frozen application sys.executable is the application
        return subprocess.Popen(
            [sys.executable, "-I", "-S", leftovers.__file__, self._prefix],
            cwd="/",
            # no mark of an outer run, which would end this process before what it guards; and not empty, as
            # of a process that is just being started, for which each search would wait
            env={"PWD": "/"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )

    def stop(self) -> None:
        """Let the process end; it ends what is left of the runs."""
        if self._process is not None and self._owner == os.getpid():
            self._process.communicate()
            self._process = None

    def forget(self) -> None:
        """Forget the process in a forked child: it is the parent's, and the child must not wait for it."""
        self._lock = threading.Lock()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.returncode = 0  # or Python warns of a process that nobody waits for
            self._process = None


_guard = _Guard()
atexit.register(_guard.stop)
os.register_at_fork(after_in_child=_guard.forget)


def _wait(pid: int, timeout: float | None) -> bool:
    """Wait, and say whether the process ended within the time; it is left to be reaped."""
    if timeout is not None and timeout > _LONGEST_POLL:
        return _looked_for(pid, timeout)
    try:
        handle = os.pidfd_open(pid)  # hears at once, where polling loses up to _LONGEST_WAIT
    except (AttributeError, OSError):  # not Linux, or one that refuses
        return _looked_for(pid, timeout)
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        ended = bool(poller.poll(None if timeout is None else 1000 * timeout))
    finally:
        os.close(handle)
    # Where SIGCHLD is ignored its status is gone, which is not to be taken for 0.
    return ended and _looked_for(pid, None)


def _looked_for(pid: int, timeout: float | None) -> bool:
    """Poll, where the system reports no ends, and say whether the process ended within the time."""
    end = None if timeout is None else time.monotonic() + timeout
    pause = 0.0005
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        seconds_left = pause if end is None else end - time.monotonic()
        if seconds_left <= 0:
            return False
        time.sleep(min(pause, seconds_left))
        pause = min(2 * pause, _LONGEST_WAIT)
    return True


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone; macOS refuses to signal a group of zombies
        os.killpg(group, number)


def environment_of(own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program: this process's, and its own variables.

    Numbers are to have points wherever a run is made: LC_ALL is C.UTF-8, unless a locale is among its own.
    """
    has_locale = any(name == "LANG" or name.startswith("LC_") for name in own)
    return {**os.environ, **({} if has_locale else {"LC_ALL": "C.UTF-8"}), **own}


def said(status: int) -> str:
    """An exit status in words."""
    if status > 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def last_words(folder: Path) -> str:
    """The last lines of stderr, for a message; where it is empty those of stdout, where some complain."""
    for name in (STDERR, STDOUT):
        path = folder / name
        if path.is_symlink() or not path.is_file():  # the program may have put anything in its place
            return f"; its {Path(name).stem} is gone."
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            text = file.read(_TAIL).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        lines = [line for line in lines if not _FRAME.match(line)] or lines
        if lines:
            return f"; the last lines of its {Path(name).stem}: {' | '.join(lines[-_LINES:])}"
    return "; it printed nothing."


@contextmanager
def scratch_folder(parent: Path | None, keep_failed: bool) -> Iterator[Path]:
    """A new folder for a run, removed at the end.

    Args:
        parent: the folder in which it is made; None for the system's temporary folder.
        keep_failed: whether the folder is kept when an error passes through, and named in its message.
    """
    folder, keeps = Path(tempfile.mkdtemp(prefix="blackbox-", dir=parent)).absolute(), False
    _guard.note("+", folder)
    try:
        yield folder
    except Exception as error:
        keeps = keep_failed
        if keeps and getattr(error, "errno", None) is None:  # else the message is the system's, and fixed
            error.args = (f"{error} The run's folder: {folder}",)
        raise
    finally:
        if not keeps:
            leftovers.remove(str(folder))
        _guard.note("-", folder)
