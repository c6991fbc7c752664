"""Processes that outlive the one that started them stop, as by SIGTERM: with a checkpoint and a free lock."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "BLACKBOX_LIFELINE"  # the end of a pipe whose other end the launcher alone holds


@contextmanager
def lifeline() -> Iterator[int]:
    """In the launcher: what it passes on to its processes, and lets go of in the end, however it ends."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def watch() -> None:
    """In a process that was started so: be asked to stop when the launcher is gone."""
    handle = os.environ.pop(VARIABLE, None)
    if handle is not None:
        threading.Thread(target=_wait, args=(int(handle),), daemon=True).start()


def _wait(handle: int) -> None:
    os.read(handle, 1)  # nothing is ever written: it comes back when the pipe is closed
    os.kill(os.getpid(), signal.SIGTERM)
