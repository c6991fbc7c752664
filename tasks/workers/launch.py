"""The processes of `--workers` on this machine: the first one starts the others, which end when it does.

Those of torchrun are its own; where it starts them again, they go on with the run that they made before.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import TypeAlias

from blackbox.terminal import say
from tasks.errors import WorkersError

STOPPED = 0  # status of a run that was asked to stop: torchrun would start again what ends otherwise
GRACE = 30.0  # seconds that the others have to end, after the first has
_SOON = 1.0  # seconds in which those end by themselves who have the same reason as the first
_STORE = "BLACKBOX_STORE"  # where the processes find each other, in a folder of the first
_STARTED = "BLACKBOX_STARTED"  # says that standard input tells when the first is gone
Process: TypeAlias = "subprocess.Popen[bytes]"
_others: ContextVar[Sequence[Process]] = ContextVar("others", default=())  # which this process has started


@contextmanager
def started(arguments: Sequence[str], workers: int) -> Iterator[None]:
    """A block in which this process is the first of several; the others follow its command line.

    They end with the block: by themselves, or asked as by SIGTERM where it raises, or killed after a while.
    If this process is killed, they stop as by SIGTERM.
    """
    if workers == 1:
        yield
        return
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    environment = dict(os.environ)
    with TemporaryDirectory(prefix="blackbox-") as folder:
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(workers),
            _STORE: f"{folder}/store",
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", _loopback()),
        }
        raised, processes = True, list[Process]()
        token = _others.set(processes)
        try:
            for rank in range(1, workers):
                variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), _STARTED: "yes"}
                # in a session of its own: Ctrl-C reaches it through the first process
                command = [sys.executable, *program, *arguments]
                processes.append(
                    subprocess.Popen(
                        command, env=os.environ | variables, start_new_session=True, stdin=subprocess.PIPE
                    )
                )
            yield
            raised = False
        finally:
            os.environ.clear()
            os.environ |= environment
            _end(processes, raised)
            _others.reset(token)


def _end(others: Sequence[Process], raised: bool) -> None:
    """Wait for the others, and say which were killed."""
    _wait(others, _SOON if raised else GRACE)
    killed = {
        rank: -process.returncode for rank, process in enumerate(others, 1) if (process.poll() or 0) < 0
    }
    for rank, number in killed.items():
        say(f"blackbox: process {rank} of {len(others) + 1} was killed by {_name(number)}.", sys.stderr)
    for process in others:
        with suppress(OSError):  # it has ended
            assert process.stdin is not None
            os.write(process.stdin.fileno(), b"!")
    _wait(others, GRACE)
    for rank, process in enumerate(others, 1):
        if process.poll() is None:
            process.kill()
            say(
                f"blackbox: process {rank} of {len(others) + 1} did not end within {GRACE:g} s after the "
                "first had, and was ended.",
                sys.stderr,
            )
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _wait(others: Sequence[Process], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in others):
        time.sleep(0.02)


def meet(timeout: float) -> None:
    """Wait in the first process until the others are there, which may die before; in those say so.

    Raises:
        WorkersError: one has ended.
    """
    file, rank = store(), os.environ.get("RANK", "0")
    if file is None:
        return
    processes = _others.get()
    file.with_name(f"rank-{rank}").touch()
    end = time.monotonic() + timeout
    for number, process in enumerate(processes, 1):
        while not file.with_name(f"rank-{number}").exists() and time.monotonic() < end:
            if process.poll() is not None:
                raise WorkersError(
                    f"Process 0: expected to find {len(processes) + 1} processes of this run, but process "
                    f"{number} ended with {process.returncode}. Its own output says more."
                )
            time.sleep(0.02)


def store() -> Path | None:
    """The file that lets the processes find each other; None where torchrun started them."""
    return Path(os.environ[_STORE]) if _STORE in os.environ else None


def watch(run: Callable[[], Path | None]) -> None:
    """Stop a process that another started, as by SIGTERM, when that one says so or is gone.

    A first process that is killed does not say which folder its run has: so `run` gives it, if it is known.
    """
    if os.environ.pop(_STARTED, None) is None:
        return
    handle = os.dup(0)
    with open(os.devnull, "rb") as nothing:  # for programs that are started here
        os.dup2(nothing.fileno(), 0)

    def wait() -> None:
        message, folder, workers = os.read(handle, 1), run(), os.environ["WORLD_SIZE"]
        if not message and folder is not None and os.environ["RANK"] == "1":
            say(
                f"blackbox: process 0 of {workers} was killed. Resume with: blackbox resume "
                f"{quote(str(folder))} --workers {workers}",
                sys.stderr,
            )
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of real time
        return f"signal {number}"


def _loopback() -> str:
    return "lo0" if sys.platform == "darwin" else "lo"


def launch_id() -> str | None:
    """Return an id, the same for all restarts of one torchrun, and for no other; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    job = os.environ["TORCHELASTIC_RUN_ID"]
    # Without --rdzv-id all jobs are called "none": then the agent tells them apart, which starts us again.
    return job if job != "none" else f"none {socket.gethostname()} {os.getppid()}"
