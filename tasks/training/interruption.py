"""The effects of a run on its process: signals are noted, and its working directory is put back.

After the first Ctrl-C, SIGTERM or SIGUSR1 the step at hand is finished; another one stops at once.

SIGUSR1 is how a cluster tells that a job's time is nearly up (`#SBATCH --signal=B:USR1@300`), SIGTERM how it
ends the job. A second SIGINT or SIGTERM stops in the middle of the step, from which the last checkpoint goes
on; a second SIGUSR1 is the same news again. However it stopped, the console script's status is 130.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

NEWS = getattr(signal, "SIGUSR1", None)  # Windows has none
_ENDING = tuple(number for number in (signal.SIGTERM, NEWS) if number is not None)
_SIGNALS = (signal.SIGINT, *_ENDING)


class StopRequest:
    """While it is entered, `requested` says whether the user or the system asked to stop.

    The handlers that were there before come back on leaving. Outside the main thread, where Python
    allows no handlers, it never sees a request.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Self:
        self._handlers = _handle(_SIGNALS, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the earlier handlers back."""
        _put_back(self._handlers)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number != NEWS:
            raise KeyboardInterrupt
        is_new, self.requested = not self.requested, True
        # no forked child says so too, and without a standard error stream 2 may be any other file
        if is_new and os.getpid() == self._process and sys.__stderr__ is not None:
            with suppress(OSError):  # Ctrl-C may have ended what it was piped to; a handler may not print
                os.write(2, b"Stopping after this step; Ctrl-C again stops at once.\n")


@contextmanager
def ending_interrupts() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise `KeyboardInterrupt`, as Ctrl-C does, in place of a death without a word."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old_handler = _handle(_ENDING, stop)
    try:
        yield
    finally:
        _put_back(old_handler)


@contextmanager
def same_directory() -> Iterator[None]:
    """A block after which the working directory is where it was, also where a box has moved it."""
    directory = os.getcwd()
    try:
        yield
    finally:
        os.chdir(directory)


def _handle(numbers: tuple[signal.Signals, ...], handler: Any) -> dict[int, Any]:
    """Set a handler, in the main thread; gives those from before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def _put_back(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        # None: it was set by code outside Python and cannot be put back from here
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
