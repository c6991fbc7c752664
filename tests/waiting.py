"""Waiting for what another thread or process does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def wait_until(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once something is so; fail where it is not within so many seconds."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"it was not so within {seconds:g} s"
        time.sleep(0.02)


@contextmanager
def interrupted_once(ready: Callable[[], bool]) -> Iterator[None]:
    """A block in which this process gets one interrupt (Ctrl-C), as soon as something is so."""

    def interrupt() -> None:
        wait_until(ready)
        time.sleep(0.2)  # Python loses one that comes between its last look and the wait for a lock
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    try:
        yield
    finally:
        waiting.join()
        signal.signal(signal.SIGINT, before)
