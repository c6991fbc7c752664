"""Starts the processes of `--workers` on this machine: this program again, as often, each with its rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType

from tasks.workers import orphans, whereabouts

GRACE = 30.0  # seconds that the others have to say why they end, after one has
_PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


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
    with tempfile.TemporaryDirectory(prefix="blackbox-") as folder, orphans.lifeline() as lifeline:
        started: list[subprocess.Popen[bytes]] = []
        with _passing_on(started):
            for rank in range(workers):
                own = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(workers),
                    "BLACKBOX_STORE": str(Path(folder) / "store"),
                    orphans.VARIABLE: str(lifeline),
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
                _end(started)  # one that hangs is killed, and told of as one
                _tell_of_killed(started, Path(folder))
                return status
            finally:
                _end(started)


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


def _tell_of_killed(started: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Say which processes had no last word; what the first one would have said, if it is among them."""
    killed = {rank: -process.returncode for rank, process in enumerate(started) if (process.poll() or 0) < 0}
    for rank, number in killed.items():
        print(f"blackbox: process {rank} of {len(started)} was killed by {_name(number)}.", file=sys.stderr)
    run = whereabouts.read(folder)
    if 0 in killed and run is not None:
        print(f"Resume with: blackbox resume {quote(run)} --workers {len(started)}", file=sys.stderr)


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
