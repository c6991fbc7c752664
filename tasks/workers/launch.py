"""Starts the processes of `--workers` on this machine, with a folder and a lifeline that they share.

Those of torchrun are its own; where it starts them again, they go on with the run that they made before.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from types import FrameType

from tasks.runs import atomic

LAUNCH = "launch.json"  # in the folder of a run that torchrun started
STOPPED = 0  # status of a run that was asked to stop: torchrun would start again what ends otherwise
GRACE = 30.0  # seconds that the others have to say why they end, after one has
_PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_STORE = "BLACKBOX_STORE"  # where the processes find each other, in a folder of the launcher
_LIFELINE = "BLACKBOX_LIFELINE"  # the end of a pipe whose other end the launcher alone holds
_PREFIX, _LOCK, _RUN = "blackbox-", ".blackbox-lock", "run"
_YOUNG = 60.0  # seconds in which a folder may be without its lock


def launch(arguments: Sequence[str], workers: int) -> int:
    """Run this program with other arguments in several processes, and wait for them.

    Signals that ask to stop go on to all of them. Where one fails the others are given a while to notice and
    are then killed. Should this process be killed, they stop as by SIGTERM.

    Args:
        arguments: the words after the program's name.
        workers: how many.

    Returns:
        The exit status of the first process; or of the first that failed, where that one did not.
    """
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    with scratch() as folder, _lifeline() as lifeline:
        started: list[subprocess.Popen[bytes]] = []
        with _passing_on(started):
            for rank in range(workers):
                own = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(workers),
                    _STORE: str(folder / "store"),
                    _LIFELINE: str(lifeline),
                    "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", _loopback()),
                    # several processes, each with as many threads as there are cores, hinder each other
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                }
                # in a session of its own, or Ctrl-C would reach it twice
                started.append(
                    subprocess.Popen(
                        [sys.executable, *program, *arguments],
                        env=os.environ | own,
                        start_new_session=True,
                        pass_fds=(lifeline,),
                    )
                )
            try:
                status = _watch(started)
                silent = {rank for rank, process in enumerate(started) if process.poll() is None}
                _end(started)
                _tell_of_killed(started, silent, folder)
                return status
            finally:
                _end(started)


def store() -> Path | None:
    """The file by which the processes of a launcher find each other; None without a launcher."""
    return Path(os.environ[_STORE]) if _STORE in os.environ else None


def note(run: Path) -> None:
    """In the first process: write down the run's folder for the launcher, which may have to say it."""
    file = store()
    if file is not None:
        file.with_name(_RUN).write_text(str(run), encoding="utf-8")


def watch() -> None:
    """In a process that was started so: be asked to stop, as by SIGTERM, when the launcher is gone."""
    handle = os.environ.pop(_LIFELINE, None)

    def wait(handle: int) -> None:
        os.read(handle, 1)  # nothing is ever written: it comes back when the pipe is closed
        os.kill(os.getpid(), signal.SIGTERM)

    if handle is not None:
        threading.Thread(target=wait, args=(int(handle),), daemon=True).start()


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed in the end; those that killed processes left are removed at first.

    A lock in it, which the system frees however a process ends, tells those of the living.
    """
    _remove_left_over(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, open(Path(name) / _LOCK, "w") as lock:
        with suppress(OSError):  # no locks on this file system: nobody else gets one either
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def _remove_left_over(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # locked by a living process, another user's, or gone meanwhile
            if time.time() - path.stat().st_mtime > _YOUNG and path.parent.stat().st_uid == os.getuid():
                with open(path, "r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent)


@contextmanager
def _lifeline() -> Iterator[int]:
    """What the launcher passes on to its processes, and lets go of in the end, however it ends."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def _watch(started: Sequence[subprocess.Popen[bytes]]) -> int:
    failed_at: float | None = None
    failed = 0
    while any(process.poll() is None for process in started):
        for process in started:
            if failed_at is None and process.poll() not in (None, 0):
                failed_at, failed = time.monotonic(), process.returncode
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            break
        time.sleep(0.05)
    first = started[0].poll()
    status = first if first else failed or next((p.returncode for p in started if p.poll()), 0)
    return 128 - status if status < 0 else status  # as a shell says it


def _tell_of_killed(started: Sequence[subprocess.Popen[bytes]], silent: set[int], folder: Path) -> None:
    """Say which processes had no last word; what the first one would have said, if it is among them.

    Args:
        started: all, ended.
        silent: those that this process has killed, since they went on after another had failed.
        folder: where the first one noted its run.
    """
    killed = {rank: -process.returncode for rank, process in enumerate(started) if (process.poll() or 0) < 0}
    for rank, number in killed.items():
        why = (
            f"did not end within {GRACE:g} s after another had, and was ended"
            if rank in silent
            else f"was killed by {_name(number)}"
        )
        print(f"blackbox: process {rank} of {len(started)} {why}.", file=sys.stderr)
    note = folder / _RUN
    if 0 in killed and note.is_file():
        run = quote(note.read_text(encoding="utf-8"))
        print(f"Resume with: blackbox resume {run} --workers {len(started)}", file=sys.stderr)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of real time
        return f"signal {number}"


@contextmanager
def _passing_on(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _loopback() -> str:
    return "lo0" if sys.platform == "darwin" else "lo"


def launch_id() -> str | None:
    """What is the same for all restarts of one torchrun, and for no other; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    job = os.environ["TORCHELASTIC_RUN_ID"]
    # Without --rdzv-id all jobs are called "none": then the agent tells them apart, which starts us again.
    return job if job != "none" else f"none {socket.gethostname()} {os.getppid()}"


def note_launch(folder: Path) -> None:
    """Write down which launch made the run in a folder."""
    if (launch := launch_id()) is not None:
        atomic.write_json(folder / LAUNCH, {"launch": launch})


def restarted(root: Path, task: str) -> Path | None:
    """The folder of the run that this launch made before it was restarted; None if it is no restart."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not root.is_dir():
        return None
    launch = launch_id()
    notes = sorted(root.glob(f"{task}-*/{LAUNCH}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in notes if json.loads(path.read_text())["launch"] == launch), None)
