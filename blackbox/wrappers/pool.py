"""`Pool`: an executor, or a function that makes one and so can make another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any

from blackbox.errors import ConfigurationError, ExecutorError


class Pool:
    """The executor in use.

    Args:
        executor: an executor, which stays its owner's, or a function that makes one.

    Attributes:
        seconds: for how long each worker has run blocks that came back, by its name.
        calls: that are using it, of several threads.

    Raises:
        ConfigurationError: it is neither.
    """

    def __init__(self, executor: Executor | Callable[[], Executor]) -> None:
        if not (isinstance(executor, Executor) or callable(executor)):
            raise ConfigurationError(
                f"Parallel, executor: expected a concurrent.futures.Executor or a function that makes one, "
                f"got {type(executor).__name__}. For Dask give client.get_executor."
            )
        self.given = executor
        self._restart()

    @property
    def replaceable(self) -> bool:
        """Whether another executor can be made."""
        return not isinstance(self.given, Executor)

    @property
    def current(self) -> Executor | None:
        """The executor, None if none is made."""
        return self._current

    def get(self) -> Executor:
        """The executor, made if need be."""
        with self._lock:
            current = self._current
            if current is None:
                current = self._current = self.given if isinstance(self.given, Executor) else self.given()
            return current

    def replace(
        self, broken: Executor | None, why: str, error: BaseException | None, *, end: bool = False
    ) -> None:
        """Let go of a broken executor; the next `get` makes another.

        Args:
            broken: the executor.
            why: in words.
            error: that said so.
            end: whether nothing that its processes do counts any more: those that are left are ended.

        Raises:
            ExecutorError: it was given as it is.
        """
        if not self.replaceable:
            raise ExecutorError(
                f"Parallel: expected an executor that runs blocks, but {why}. Give a function that makes the "
                "executor (executor=lambda: ...) in place of the executor, and it is replaced."
            ) from error
        with self._lock:
            if self._current is not broken:
                return  # another thread was faster
            self._current = None
        if broken is not None:
            if end:
                self.end(broken)
            with suppress(Exception):  # a cluster that is gone cannot be told
                broken.shutdown(wait=False)

    def end(self, executor: Executor | None) -> None:
        """Kill the processes of a process pool of this machine; it breaks, if it has not.

        A pool that breaks asks them to end and waits until they have, Python 3.12 under the lock that
        `submit` and `shutdown` take. It waits for ever for one that does not hear it, and in 3.11 for one
        that `submit` was just starting; and Python waits for the pool when it exits.
        """
        if isinstance(executor, ProcessPoolExecutor):
            for process in list((vars(executor).get("_processes") or {}).values()):
                with suppress(ValueError):  # closed: it has ended
                    process.kill()

    def called(self, change: int) -> None:
        """Count calls that begin (1) and end (-1)."""
        with self._lock:
            self.calls += change

    def note(self, worker: str, seconds: float) -> None:
        """Count what a worker did."""
        with self._lock:
            self.seconds[worker] = self.seconds.get(worker, 0.0) + seconds

    def close(self) -> None:
        """Shut down an executor that was made here, when it has finished."""
        with self._lock:
            current, self._current = self._current, None
        if current is not None and self.replaceable:
            current.shutdown(wait=True)

    def _restart(self) -> None:
        self._lock = Lock()
        self._current: Executor | None = None
        self.seconds: dict[str, float] = {}
        self.calls = 0

    def __getstate__(self) -> dict[str, Any]:
        """The function alone."""
        if not self.replaceable:
            raise TypeError(
                "Parallel: expected a function that makes the executor, so that it can be pickled, got "
                f"{type(self.given).__name__}. Give executor=<a function of a module>."
            )
        return {"given": self.given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With no executor yet."""
        self.given = state["given"]
        self._restart()
