"""One run of a program in a folder of its own: no shell, a time limit, and nothing of it left behind."""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blackbox.adapters.command import leftovers

STDOUT, STDERR = "stdout.txt", "stderr.txt"
_GRACE = 2.0  # seconds between the wish to stop and the end
_LONGEST_WAIT = 0.02
_TAIL = 4096  # bytes of stderr that are read for a message


def run(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout: float | None,
    max_bytes: int,
) -> None:
    """Run a program in a folder until it ends; its output goes to stdout.txt and stderr.txt there.

    The program is the head of a process group of its own. What is left of the group is killed when the
    program ends, when its time is up (asked by SIGTERM first), and when we are interrupted. On Linux so are
    processes that have left the group, and all are killed when this process dies.

    Args:
        arguments: the program and its arguments, handed over as they are.
        folder: where the program runs.
        environment: all environment variables of the program, but for BLACKBOX_RUN, by which its processes
            are found.
        timeout: seconds that the program may take; None for any time.
        max_bytes: the size at which a file that the program writes is cut off (by the system, on Linux).

    Raises:
        TimeoutError: the program took longer than `timeout`.
        RuntimeError: the program ended with another status than 0.
        OSError: the program could not be started.
    """
    mark = _guard.mark()
    # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting.
    with (folder / STDOUT).open("wb") as out, (folder / STDERR).open("wb") as err:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**environment, leftovers.VARIABLE: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        _limit_files(process.pid, max_bytes)
        ended = _wait(process.pid, timeout)
        if not ended:
            _signal(process.pid, signal.SIGTERM)
            _wait(process.pid, _GRACE)
    finally:
        # Before the head is reaped: from then on its number could be another process's.
        _signal(process.pid, signal.SIGKILL)
        leftovers.end(mark)
        status = process.wait()
    if not ended:
        raise TimeoutError(
            f"{_program(arguments)} ran longer than {timeout:g} s and was killed{_last_words(folder)}"
        )
    if status:
        raise RuntimeError(f"{_program(arguments)} {_said(status)}{_last_words(folder)}")


class _Guard:
    """A small process beside this one that ends the programs of this one when it dies, and marks for them.

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
            if self._owner != os.getpid():  # the first run, or the first since a fork
                self._owner = os.getpid()
                self._prefix = f"{os.environ.get(leftovers.VARIABLE, '')}{secrets.token_hex(8)}/"
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            return f"{self._prefix}{next(self._numbers)}/"

    def _start(self) -> subprocess.Popen[bytes] | None:
        if sys.platform != "linux" or not sys.executable or getattr(sys, "frozen", False):
            return None  # in a frozen application sys.executable is the application
        return subprocess.Popen(
            [sys.executable, "-I", "-S", leftovers.__file__, self._prefix],
            cwd="/",
            env={},  # no mark of an outer run, which would end this process before what it guards
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
        """In a child after a fork: the process is the parent's, and must not wait for the child."""
        self._lock = threading.Lock()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.returncode = 0  # or Python warns of a process that nobody waits for
            self._process = None


_guard = _Guard()
atexit.register(_guard.stop)
os.register_at_fork(after_in_child=_guard.forget)


def _wait(pid: int, timeout: float | None) -> bool:
    """Whether the process ended within the time; it is left to be reaped."""
    end = None if timeout is None else time.monotonic() + timeout
    pause = 0.0005
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        left = pause if end is None else end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_WAIT)
    return True


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone; macOS refuses to signal a group of zombies
        os.killpg(group, number)


def _limit_files(pid: int, max_bytes: int) -> None:
    # Not by preexec_fn, which can deadlock where there are threads. Elsewhere than on Linux sizes are
    # checked when files are read.
    if sys.platform == "linux":
        import resource

        try:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            limit = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
        except (ProcessLookupError, PermissionError):  # it has ended already, or took another user's rights
            pass


def _program(arguments: Sequence[str]) -> str:
    return Path(arguments[0]).name


def _said(status: int) -> str:
    # shells give 128 + the signal that ended what they ran
    larger = " (a file of it reached max_bytes)" if signal.SIGXFSZ in (-status, status - 128) else ""
    if status > 0:
        return f"ended with status {status}{larger}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}{larger}"


def _last_words(folder: Path) -> str:
    """The last lines of stderr, for a message."""
    path = folder / STDERR
    if path.is_symlink() or not path.is_file():  # the program may have put anything in its place
        return "; its stderr is gone."
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read(_TAIL).decode(errors="replace").strip().splitlines()[-5:]
    return f"; the last lines of its stderr: {' | '.join(lines)}" if lines else "; its stderr is empty."


_PREFIX, _LOCK = "blackbox-", ".lock"
_cleaned: set[Path] = set()


@contextmanager
def scratch_folder(parent: Path | None, keep_failed: bool) -> Iterator[Path]:
    """A new folder for a run, removed at the end.

    A lock beside it says that this process is alive. So the first run of a process can tell the folders of
    processes that were killed, and removes them.

    Args:
        parent: where the folder is made; None for the system's temporary folder.
        keep_failed: whether the folder is kept when an error passes through, and named in its message.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    if parent not in _cleaned:
        _cleaned.add(parent)
        _clean(parent)
    folder, lock = _locked_folder(parent)
    kept = False
    try:
        yield folder
    except Exception as error:
        kept = keep_failed
        if kept and getattr(error, "errno", None) is None:  # else the message is the system's, and fixed
            error.args = (f"{error} The run's folder: {folder}",)
        raise
    finally:
        if not kept:
            _remove(folder)
        _lock_of(folder).unlink(missing_ok=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the open file that locks it; the system unlocks it when this process dies."""
    while True:
        lock, name = tempfile.mkstemp(_LOCK, _PREFIX, parent)
        with suppress(
            OSError
        ):  # no locks on this file system: nobody else gets one either, nothing is cleaned
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            folder = Path(name.removesuffix(_LOCK))
            folder.mkdir(mode=0o700)
            return folder, lock
        os.close(lock)  # another process was faster with the lock, and cleaned it away


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _clean(parent: Path) -> None:
    """Remove the folders whose lock is nobody's, if they are this user's."""
    for path in parent.glob(f"{_PREFIX}*{_LOCK}"):
        with suppress(OSError):  # held, gone, another user's, or no locks here
            lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder = Path(str(path).removesuffix(_LOCK))
                if folder.exists() and _ours(folder):
                    _remove(folder)
                path.unlink()
            finally:
                os.close(lock)


def _ours(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _remove(folder: Path) -> None:
    """Remove a folder, with what the program made read-only in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        os.chmod(folder, stat.S_IRWXU)
        for parent, names, _ in os.walk(folder):  # walks no links
            for name in names:
                if not os.path.islink(os.path.join(parent, name)):
                    os.chmod(os.path.join(parent, name), stat.S_IRWXU)
        shutil.rmtree(folder, ignore_errors=True)
