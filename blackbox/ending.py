"""Ending of dependants: workers end with their owner, programs with the call that they are for."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Event, Lock, Thread

_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has only the second, which there ends at once
_LOOKS = 1.0  # seconds between two looks for an owner, where the system does not report its end


class Stop:
    """The wish that work in another thread ends: rows of code that waits for a program can be ended.

    Attributes:
        asked: whether the work has been asked to end.
    """

    def __init__(self) -> None:
        self._lock, self._ends = Lock(), list[Callable[[], object]]()
        self.asked = False

    def ask(self) -> None:
        """End what runs now, and whatever begins later."""
        with self._lock:
            self.asked = True
            ends = list(self._ends)
        for end in ends:
            end()

    @contextmanager
    def heard_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Call a function, in the asking thread, when the work is asked to end, while the block lasts."""
        with self._lock:
            self._ends.append(end)
            is_asked = self.asked
        try:
            if is_asked:
                end()
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


_stop: ContextVar[Stop | None] = ContextVar("blackbox.ending.stop", default=None)


def set_stop(stop: Stop) -> None:
    """Let what runs in this context hear this wish to stop."""
    _stop.set(stop)


def stopped() -> bool:
    """Say whether the work in this context should have ended."""
    stop = _stop.get()
    return stop is not None and stop.asked


@contextmanager
def ended_by(end: Callable[[], object]) -> Iterator[None]:
    """Let a function be called, from another thread, when what runs in this context is to end."""
    stop = _stop.get()
    if stop is None:
        yield
        return
    with stop.heard_by(end):
        yield


def pause(seconds: float) -> None:
    """Let some seconds pass, or fewer where what runs in this context is to end."""
    if _stop.get() is None:
        time.sleep(seconds)
        return
    ended = Event()
    with ended_by(ended.set):
        ended.wait(seconds)


_watched: set[tuple[int, int]] = set()  # (this process, its owner): a fork has no threads of its parent
_watching = Lock()


def end_with(owner: int) -> None:
    """Let this process be killed when another one of this machine has ended, in whatever way.

    Nothing else ends the worker of a pool whose owner was killed: it waits for rows for good. A death signal
    of the system would come with the end of the *thread* that started it, whose process may go on. A thread
    waits instead, so code that never lets go of the interpreter's lock is ended only when it returns.
    Programs are ended by their guard (`blackbox.adapters.command.process`).

    Args:
        owner: the number of that process; nothing is done where it is this one, or watched already.
    """
    with _watching:
        pair = os.getpid(), owner
        if pair in _watched or owner == os.getpid():
            return
        _watched.add(pair)
    Thread(target=_wait_for_the_end_of, args=(owner, os.getppid()), daemon=True).start()


def _wait_for_the_end_of(owner: int, parent: int) -> None:
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        pass  # it has ended
    except (AttributeError, OSError):  # not Linux, or one that refuses
        while os.getppid() == parent and _is_there(owner):
            time.sleep(_LOOKS)
    else:
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        waiting.poll()
    with suppress(OSError):
        os.kill(os.getpid(), _KILL)


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def begin_worker(owner: int, first: Callable[..., object] | None, arguments: tuple[object, ...]) -> None:
    """Start a pool's worker: it watches its owner, and then calls its own first function."""
    end_with(owner)
    if first is not None:
        first(*arguments)
