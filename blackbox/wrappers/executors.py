"""The executor of a `Parallel`: made when one is needed, replaced when it breaks, its processes ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError, ProcessPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any

from blackbox.ending import begin_worker
from blackbox.errors import ExecutorError

_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has only the second, which there ends at once


class HeldExecutor:
    """The executor that runs a `Parallel`'s blocks: made at the first call, and anew where that is possible.

    A pickle has the function that makes it, and nothing else.

    Args:
        source: an executor, or a function that makes one.

    Attributes:
        current: the executor in use; None before the first call, and after it was let go of.
        answered: whether a worker of the current executor has ever answered.
        had_workers: whether a cluster that is asked for its workers ever had any.
        calls: the number of calls, in all threads, that are using it now.
    """

    def __init__(self, source: Executor | Callable[[], Executor]) -> None:
        self._source, self._lock = source, Lock()
        self.current: Executor | None = None
        self.answered = self.had_workers = False
        self.calls = 0

    @property
    def replaceable(self) -> bool:
        """True if there is a function that makes another one."""
        return not isinstance(self._source, Executor)

    def get(self) -> Executor:
        """The executor, made if need be."""
        with self._lock:
            if self.current is None:
                self.answered = False
                self.current = self._source if isinstance(self._source, Executor) else self._source()
                _bind(self.current)
            return self.current

    def begin_call(self) -> None:
        """Count a call that uses it."""
        with self._lock:
            self.calls += 1

    def end_call(self) -> None:
        """Count a call less."""
        with self._lock:
            self.calls -= 1

    def replace(self, broken: Executor | None, why: str, error: BaseException | None, *, kill: bool) -> None:
        """Let go of an executor; the next block makes another.

        A process pool that breaks asks its processes to end and waits until they have; Python 3.12 does so
        under the lock that `submit` and `shutdown` take. It waits for ever for a process that does not hear
        it, and in 3.11 for one that `submit` was just starting. Python also waits for the pool when it exits.
        So `kill` ends the processes first.

        Args:
            broken: the executor; nothing is done where it is no longer the current one.
            why: its fault, for the message.
            error: the error that was raised; None for none.
            kill: whether its processes are killed.

        Raises:
            ExecutorError: there is no function that makes another.
        """
        if not self.replaceable:
            raise ExecutorError(
                f"Parallel: expected an executor that runs blocks, but {why}. Give a function that makes the "
                "executor (executor=lambda: ...) in place of the executor, and it is replaced."
            ) from error
        with self._lock:
            if broken is None or self.current is not broken:
                return  # another thread was faster
            self.current = None
        if kill:
            for process in list((getattr(broken, "_processes", None) or {}).values()):
                with suppress(ValueError, OSError):  # it has ended
                    if process.exitcode is None:
                        os.kill(process.pid, _KILL)
        with suppress(Exception):  # a cluster that is gone hears of nothing
            broken.shutdown(wait=False)

    def close(self) -> None:
        """Shut down an executor that was made here; a later call makes another."""
        with self._lock:
            current, self.current = self.current, None
        if current is not None and self.replaceable:
            current.shutdown(wait=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it without this process's own parts."""
        if not self.replaceable:
            raise TypeError(
                "Parallel: expected a function that makes the executor, so that it can be pickled, got "
                f"{type(self._source).__name__}. Give executor=<a function of a module>."
            )
        return HeldExecutor, (self._source,)


def _bind(executor: Executor) -> None:
    """Let the processes of a pool that has none yet end with this one, also those that never get a row."""
    if isinstance(executor, ProcessPoolExecutor) and not executor._processes:
        first, arguments = getattr(executor, "_initializer", None), getattr(executor, "_initargs", ())
        if first is not begin_worker:
            vars(executor)["_initializer"] = begin_worker
            vars(executor)["_initargs"] = (os.getpid(), first, arguments)


def has_processes(executor: Executor | None) -> bool:
    """Say whether an executor runs blocks in processes of this machine, which can be ended."""
    return hasattr(executor, "_processes")


def worker_count(executor: Executor | None) -> int | None:
    """Return the number of an executor's workers; None where it does not report it."""
    return getattr(executor, "_max_workers", None)


def cluster_client(executor: Executor | None) -> Any:
    """The client of an executor's Dask cluster, which knows its workers; None of other executors."""
    client = getattr(executor, "_client", None)
    return client if hasattr(client, "nthreads") else None


def cancelled(future: Future[Any]) -> bool:
    """Cancel a block that has not begun; whether that was in time.

    A process pool that breaks tells all its futures so, and where one was cancelled, the thread that does it
    ends with InvalidStateError (Python 3.11). A cancelled future need not hear of it, also where it is
    cancelled while that thread tells it.
    """

    def unless_cancelled(error: BaseException | None) -> None:
        try:
            Future.set_exception(future, error)
        except InvalidStateError:
            if not future.cancelled():
                raise

    vars(future)["set_exception"] = unless_cancelled
    return future.cancel()
