"""Calls that do not return: a block of Python code is ended after a time."""

from __future__ import annotations

import ctypes
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 0.5  # seconds after which a block is told once more, that has caught what was to end it


class OverdueError(BaseException):
    """Ends a block; no `Exception`, so that solvers which go on after errors end too."""


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """A block that raises `TimeoutError` if it takes longer than this.

    In the main thread waiting ends as well (an alarm signal); in others, and on Windows, what runs Python.
    A call inside of compiled code ends where it comes back to Python.
    """
    if math.isinf(seconds):
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    bound = _alarmed if main and hasattr(signal, "setitimer") else _told
    try:
        with bound(max(seconds, 1e-3)):
            yield
    except OverdueError:
        raise TimeoutError from None


@contextmanager
def _alarmed(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise OverdueError

    previous_handler = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.signal(signal.SIGALRM, previous_handler)


@contextmanager
def _told(seconds: float) -> Iterator[None]:
    thread, end_event, lock = threading.get_ident(), threading.Event(), threading.Lock()

    def tell() -> None:
        wait = seconds
        while not end_event.wait(wait):
            with lock:
                if not end_event.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(OverdueError)
                    )
            wait = AGAIN

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        with lock:
            end_event.set()
