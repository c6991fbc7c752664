"""One run of a program: no shell, a time limit, and no process of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    program ends, when its time is up (asked by SIGTERM first), and when we are interrupted.

    Args:
        arguments: the program and what it is given, handed over as they are.
        folder: where it runs.
        environment: all of its environment variables.
        timeout: seconds it may take; None for any time.
        max_bytes: the size at which a file that it writes is cut off (by the system, on Linux).

    Raises:
        TimeoutError: it took longer.
        RuntimeError: it ended with another status than 0.
        OSError: it could not be started.
    """
    # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting.
    with (folder / STDOUT).open("wb") as out, (folder / STDERR).open("wb") as err:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=dict(environment),
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
        status = process.wait()
    if not ended:
        raise TimeoutError(
            f"{_program(arguments)} ran longer than {timeout:g} s and was killed{_last_words(folder)}"
        )
    if status:
        raise RuntimeError(f"{_program(arguments)} {_said(status)}{_last_words(folder)}")


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
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone; macOS refuses to signal a group of zombies
        pass


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
