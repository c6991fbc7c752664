"""`Parallel`: blocks of rows on the workers of any `concurrent.futures.Executor`."""

from __future__ import annotations

import os
import pickle
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any, Self, TypeAlias

from torch import Tensor

from blackbox.checks import check_count, check_positive
from blackbox.errors import BlackBoxError, BudgetError, ConfigurationError, ExecutorError
from blackbox.failures import FailedRow, Failure, Outcome
from blackbox.function import BlackBoxFunction
from blackbox.ledger import Ledger
from blackbox.running import pick, place, stops, unanswered
from blackbox.words import counted
from blackbox.wrappers.workers import Reply, Task, occupied, run
from blackbox.wrappers.wrapper import Wrapper

_CHANGING = {"_ledger", "failures", "isolates"}  # these travel with every block
_LOOKS = 2.0  # seconds between two looks for workers of a cluster
_BREAKS = 3  # executors in a row that break before anything comes of it
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has only the second, which there ends at once

Told: TypeAlias = Callable[[tuple[Tensor, ...], Outcome], object]
_told: ContextVar[Told | None] = ContextVar("blackbox.wrappers.parallel.told", default=None)


@contextmanager
def blocks_told(told: Told | None) -> Iterator[None]:
    """A block in which a function is given the rows of each block that is back, and their outcome."""
    token = _told.set(told)
    try:
        yield
    finally:
        _told.reset(token)


class Parallel(Wrapper):
    """Run blocks of rows at the same time, on threads, processes or machines.

        Parallel(box, ThreadPoolExecutor(8))                         # a box that waits or lets go of the GIL
        Parallel(box, lambda: loky.get_reusable_executor(8))         # processes; replaced if one dies
        Parallel(box, dask.distributed.Client(address).get_executor) # a Dask cluster
        Parallel(box, lambda: mpi4py.futures.MPIPoolExecutor())      # MPI: python -m mpi4py.futures script.py
        Parallel(box, lambda: executorlib.SlurmJobExecutor())        # jobs of a queue

    The result equals that of the box called in this process with the same blocks, to the bit if workers
    compute with the same number of threads. Blocks are `block` rows in the order of the call, for any number
    of workers. Order is kept. A process gets the box once, pickled, and keeps it until one of the box's
    attributes is assigned anew; its rows are on the CPU. What is written into an array that the box holds is
    not seen.
    Threads share the box itself, which must then be thread-safe. A `Parallel` that is called in a thread of
    its own executor runs its blocks there, one after another.

    What can go wrong, and what happens then:

    - A row that raises or is not finite has failed, as in this process; faults of the box are raised.
    - A worker that dies (killed, out of memory) takes its pool with it, and nothing reports whose rows it
      ran. Blocks that were with the pool run again, each by itself. If its worker dies once more, a block is
      split into rows, and a row whose worker dies even then has failed (`LOST`).
    - If a block takes longer than `timeout`, a process of a pool ends itself, and the block's rows run alone;
      a row that takes longer alone has failed (`TIMED_OUT`). Other workers (threads, Dask, MPI) cannot be
      ended: the row is given up and the worker left behind. If that is a thread, Python waits for it at exit.
    - A Dask cluster whose workers have all died keeps rows for those that may come. If none comes for
      `without_workers` seconds, `ExecutorError` is raised. For a cluster's first worker there is no limit.
    - An executor that does not report that a worker died, as with jobs of a queue, is waited for without end
      unless there is a `timeout`.
    - An executor that breaks, or is shut down, is replaced if you passed a function that makes executors;
      otherwise `ExecutorError` is raised.

    Rows are counted where they run, and the counts come back with the answers. If a block's worker died, all
    its rows count as run, because they may have cost something, and their repetition counts again. A
    scheduler that repeats rows itself (Dask, when a worker dies) does not report this, and they count once.
    Put `Budgeted` and `RateLimited` around `Parallel`, because inside it each process would have its own;
    `Cached` and `Retrying` work on either side.

    Args:
        box: a black box, or a function without arguments that makes one, for boxes that cannot be pickled.
            The function is called here too, for the specs.
        executor: an executor, which you shut down yourself, or a function that makes one. Only with a
            function are processes killed and executors replaced.
        block: rows that go to a worker together. 1 suits code that takes seconds per row; code that takes
            many rows at once needs enough to keep it busy for a few tenths of a second.
        in_flight: the most blocks submitted and not yet back, which limits memory. None for the number of
            workers if the executor reports it, otherwise twice this machine's cores; for a cluster, set it.
        timeout: seconds that a block, or a row run alone, may take. In a process of a pool they start with
            the block. Elsewhere they start when the executor receives the block, so `in_flight` should be the
            number of its workers, or blocks that wait for one are given up.
        without_workers: seconds that a Dask cluster which had workers may be without any while rows wait;
            None for any time, as where a queue starts them again.

    Raises:
        ConfigurationError: a setting is out of range; from a call, the box cannot be pickled.
        ExecutorError: from a call, there is no working executor left.
    """

    transparent = True

    def __init__(
        self,
        box: BlackBoxFunction | Callable[[], BlackBoxFunction],
        executor: Executor | Callable[[], Executor],
        *,
        block: int = 1,
        in_flight: int | None = None,
        timeout: float | None = None,
        without_workers: float | None = 300.0,
    ) -> None:
        """Check, then wrap."""
        made = box if isinstance(box, BlackBoxFunction) or not callable(box) else box()
        super().__init__(made)
        self.block = check_count("Parallel", "block", block)
        self.in_flight = None if in_flight is None else check_count("Parallel", "in_flight", in_flight)
        self.timeout = None if timeout is None else check_positive("Parallel", "timeout", timeout)
        self.without_workers = without_workers
        if without_workers is not None:
            check_positive("Parallel", "without_workers", without_workers)
        if not (isinstance(executor, Executor) or callable(executor)):
            raise ConfigurationError(
                "Parallel, executor: expected a concurrent.futures.Executor or a function that makes one, "
                f"got {type(executor).__name__}. For Dask give client.get_executor."
            )
        self._source, self._given = box, executor
        self._restart()

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Block by block on the workers."""
        self._notice()
        told = _told.get()
        with blocks_told(None):  # threads run the box in this context, and it may have such a wrapper inside
            return _Call(self, inputs, told).run()

    def box_changed(self) -> None:
        """Give workers the box anew, as it is now; workers that make it themselves could not have it so."""
        if self._packed is not None and not isinstance(self._source, BlackBoxFunction):
            raise ConfigurationError(
                f"{self!r}, box: expected one that stays as the function makes it, got one that was changed "
                "after workers had made theirs. Change what the function makes, in a new Parallel."
            )
        self._key, self._packed, self._held = uuid.uuid4().hex, None, None

    def _notice(self) -> None:
        """See whether an attribute was reassigned since the box was packed for the workers."""
        held = _held(self.box)
        if self._packed is not None and self._held is not None:
            old = self._held
            if held.keys() != old.keys() or any(held[key] is not old[key] for key in held):
                self.box_changed()
        self._held = held

    def close(self) -> None:
        """Shut down an executor that was made here; a later call makes another."""
        with self._lock:
            current, self._current = self._current, None
        if current is not None and self._replaceable:
            current.shutdown(wait=True)

    def __enter__(self) -> Self:
        """For `with`, which closes at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def _replaceable(self) -> bool:
        return not isinstance(self._given, Executor)

    def _executor(self) -> Executor:
        """The executor, made if need be."""
        with self._lock:
            if self._current is None:
                self._answered = False
                self._current = self._given if isinstance(self._given, Executor) else self._given()
            return self._current

    def _replace(self, broken: Executor | None, why: str, error: BaseException | None, kill: bool) -> None:
        """Let go of an executor; the next block makes another.

        A process pool that breaks asks its processes to end and waits until they have, Python 3.12 under the
        lock that `submit` and `shutdown` take. It waits for ever for one that does not hear it, and in 3.11
        for one that `submit` was just starting; and Python waits for the pool when it exits. So `kill` ends
        them first.
        """
        if not self._replaceable:
            raise ExecutorError(
                f"Parallel: expected an executor that runs blocks, but {why}. Give a function that makes the "
                "executor (executor=lambda: ...) in place of the executor, and it is replaced."
            ) from error
        with self._lock:
            if broken is None or self._current is not broken:
                return  # another thread was faster
            self._current = None
        if kill:
            for process in list((getattr(broken, "_processes", None) or {}).values()):
                with suppress(ValueError, OSError):  # it has ended
                    if process.exitcode is None:
                        os.kill(process.pid, _KILL)
        with suppress(Exception):  # a cluster that is gone cannot be told
            broken.shutdown(wait=False)

    def _pack(self) -> bytes:
        if self._packed is None:
            try:
                self._packed = pickle.dumps(self._source)
            except Exception as error:
                raise ConfigurationError(
                    f"{self!r}, box: expected one that can be pickled for other processes, got "
                    f"{type(error).__name__}: {error}. Give a function of a module that makes the box."
                ) from error
        return self._packed

    def _restart(self) -> None:
        self._key, self._lock = uuid.uuid4().hex, Lock()
        self._current: Executor | None = None
        self._answered = False  # whether a worker of it ever has
        self._had_workers = False  # a cluster that is asked for them
        self._packed: bytes | None = None
        self._held: dict[tuple[int, str], Any] | None = None  # what the box was made of in the last call
        self._calls = 0  # of all threads, that are using the executor

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        if not self._replaceable:
            raise TypeError(
                "Parallel: expected a function that makes the executor, so that it can be pickled, got "
                f"{type(self._given).__name__}. Give executor=<a function of a module>."
            )
        own = ("_key", "_lock", "_current", "_answered", "_had_workers", "_packed", "_held", "_calls")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With no executor yet."""
        vars(self).update(state)
        self._restart()

    def __repr__(self) -> str:
        """With the size of blocks, on which the bits depend."""
        return f"Parallel({self.box!r}, block={self.block})"


def _held(box: BlackBoxFunction) -> dict[tuple[int, str], Any]:
    """The attributes of a box and of the wrappers around it, but for what each call changes."""
    found: dict[tuple[int, str], Any] = {}
    depth = 0
    while True:
        wraps = isinstance(box, Wrapper)
        for key, value in vars(box).items():
            if key not in _CHANGING and not (wraps and key.startswith("_")):
                found[depth, key] = value
        if not isinstance(box, Wrapper):
            return found
        box, depth = box.box, depth + 1


@dataclass(eq=False)
class _Block:
    """Rows that go to a worker together.

    Attributes:
        rows: their places in the call.
        alone: a worker died while it was with a pool, so it runs with no others, to see whose fault that was.
        packed: it takes the box along.
        task: the last attempt.
        executor: who has it.
        began: when it began, or was handed in where that is not known, in seconds of `time.monotonic`.
    """

    rows: list[int]
    alone: bool = False
    packed: bool = False
    task: Task | None = None
    executor: Executor | None = None
    began: float | None = None


class _Call:
    """One call of a `Parallel`: its blocks handed to the executor and taken back, whatever becomes of it."""

    def __init__(self, owner: Parallel, inputs: tuple[Tensor, ...], told: Told | None) -> None:
        self.told = told
        count, size = len(inputs[0]), owner.block
        self.owner, self.box, self.inputs = owner, owner.box, inputs
        self.outcome = unanswered(owner.box, inputs)
        starts = range(0, count, size)
        self.waiting = deque(_Block(list(range(start, min(start + size, count)))) for start in starts)
        self.suspects: deque[_Block] = deque()
        self.flying: dict[Future[Reply], _Block] = {}
        self.fault: Exception | None = None
        self.left: list[Future[Reply]] = []  # of rows that were given up
        self.breaks = 0
        self.stopped = self.withdrawn = False
        self.looked = -_LOOKS  # when workers of a cluster were counted last, and since when there are none
        self.deserted: float | None = None

    def run(self) -> Outcome:
        """All blocks, or under "raise" those up to the first failure.

        Raises:
            ExecutorError: there is no executor to go on with.
            BlackBoxError: a fault of the box.
        """
        with self.owner._lock:
            self.owner._calls += 1
        try:
            while self.waiting or self.suspects or self.flying:
                self._hand_in()
                self._take_back()
        except BaseException as error:
            # The user's or the system's wish to stop: Python waits for workers when it exits, and a row may
            # hang. Not where they may be at another thread's blocks.
            if not isinstance(error, Exception) and self.owner._replaceable and self.owner._calls == 1:
                self.owner._replace(self.owner._current, "its workers were ended", None, kill=True)
            raise
        finally:
            with self.owner._lock:
                self.owner._calls -= 1
            withdrawn = self._stop()
            current = self.owner._current
            # What its workers are at may hang, and Python waits for them when it exits.
            if withdrawn and self.owner._replaceable and self.owner._calls == 0:
                if hasattr(current, "_processes"):
                    self.owner._replace(current, "its rows were taken back", None, kill=True)
            for block in self.flying.values():  # left behind by an error
                if self.owner._packed is None and hasattr(current, "_processes"):
                    self._settle(block, Ledger())  # no worker has ever been given the box
                else:
                    self._lose(block)
        if self.fault is not None:
            raise self.fault
        return self.outcome

    def _hand_in(self) -> None:
        if self.stopped:  # what came back since is not run again
            self.waiting.clear()
            self.suspects.clear()
        while self.waiting or self.suspects:
            if any(block.alone for block in self.flying.values()) or (self.suspects and self.flying):
                return
            block = (self.suspects or self.waiting).popleft()
            executor = None
            try:
                executor = self.owner._executor()
                if executor in occupied.get():  # this call has one of its workers, and would wait for itself
                    place(self.outcome, block.rows, self.box.run_rows(pick(self.inputs, block.rows)))
                    if stops(self.box, self.outcome):
                        self.waiting.clear()
                    continue
                if not block.alone and len(self.flying) >= self._most(executor):
                    self.waiting.appendleft(block)
                    return
                self._submit(block, executor)
            except BlackBoxError:
                raise
            except Exception as error:  # shut down, broken, or its cluster is gone
                self._queue(block)
                self._replace(executor, f"it takes no more ({type(error).__name__}: {error})", error)

    def _most(self, executor: Executor) -> int:
        """Blocks in flight."""
        return self.owner.in_flight or getattr(executor, "_max_workers", None) or 2 * (os.cpu_count() or 1)

    def _submit(self, block: _Block, executor: Executor) -> None:
        inputs = pick(self.inputs, block.rows)
        packed = self.owner._pack() if block.packed else None
        needed = self.box.rows_to_run(inputs) if self.box.ledger.bounded() else len(block.rows)
        try:
            loan = self.box.ledger.lend(needed, 1 / self._most(executor))
        except BudgetError as error:  # its first run was set aside, so this is another one
            for row in block.rows:
                self._fail(row, Failure.LOST, error)
            return
        ends_itself = self.owner.timeout if hasattr(executor, "_processes") else None
        block.task = Task(self.box, self.owner._key, packed, inputs, loan, ends_itself)
        assert block.task.context is not None
        block.task.context.run(occupied.set, (*occupied.get(), executor))
        block.executor = executor
        block.began = None if isinstance(executor, ThreadPoolExecutor) else time.monotonic()
        try:
            self.flying[executor.submit(run, block.task)] = block
        except BaseException:
            self._settle(block, Ledger())
            raise

    def _queue(self, block: _Block) -> None:
        (self.suspects if block.alone else self.waiting).appendleft(block)

    def _take_back(self) -> None:
        """Wait for blocks that are done, and take them back.

        Apart from `run`, which would keep the last future as a variable while it waits for the next: a Dask
        cluster runs what is kept anew when the worker with its answer dies.
        """
        timeout = self.owner.timeout
        poll = None if timeout is None else min(0.25, max(0.01, timeout / 10))
        if self.owner.without_workers is not None and self._look_for_workers(self.owner.without_workers):
            poll = min(poll or _LOOKS, _LOOKS, self.owner.without_workers)
        for future in wait(self.flying, poll, FIRST_COMPLETED).done:
            if future in self.flying:
                self._land(future)
        if timeout is not None:
            for future, block in list(self.flying.items()):
                if block.began is None and future.running():
                    block.began = time.monotonic()
                ends_itself = block.task is None or block.task.timeout is not None
                if self._late(block) and not ends_itself and not future.done():
                    self._give_up(future)

    def _look_for_workers(self, patience: float) -> bool:
        """Whether a block is with a cluster that can be asked for its workers.

        Raises:
            ExecutorError: it had some, and has had none for so many seconds.
        """
        clients = [getattr(block.executor, "_client", None) for block in self.flying.values()]
        client = next((one for one in clients if hasattr(one, "nthreads")), None)
        now = time.monotonic()
        if client is None or now - self.looked < min(_LOOKS, patience / 2):
            return client is not None
        self.looked = now
        try:
            workers = len(client.nthreads())
        except Exception:  # it is gone altogether, which its futures tell
            return True
        self.owner._had_workers |= workers > 0
        if workers or not self.owner._had_workers:
            self.deserted = None
        elif self.deserted is None:
            self.deserted = now
        elif now - self.deserted >= patience:
            rows = sum(len(block.rows) for block in self.flying.values())
            raise ExecutorError(
                f"{self.box!r}: expected a cluster with workers, but all of them have ended and none has "
                f"come for {patience:g} s (rows that wait: {rows}). See what the workers print. Where new "
                "ones may take longer, give Parallel(..., without_workers=) more seconds, or None."
            )
        return True

    def _late(self, block: _Block) -> bool:
        timeout = self.owner.timeout
        return timeout is not None and block.began is not None and time.monotonic() - block.began >= timeout

    def _land(self, future: Future[Reply]) -> None:
        """Take back a block that is done."""
        block = self.flying[future]
        try:
            reply = future.result()
        except (BrokenExecutor, CancelledError) as error:
            self._broken(block.executor, error)
            return
        except Exception as error:
            self._lose(self.flying.pop(future))
            if type(error).__name__ != "KilledWorker":  # Dask's: this block's workers died, one by one
                raise ExecutorError(
                    f"{self.box!r}: expected an executor that runs blocks, but one could not be run "
                    f"({type(error).__name__}: {error}). Workers need the same packages and the box's "
                    "module; a box that cannot be made from a pickle needs a function that makes it."
                ) from error
            block.alone = True
            self._blame(block)
            return
        del self.flying[future]
        self._settle(block, reply.counts or Ledger())
        self.owner._answered |= block.executor is self.owner._current
        if reply.missing:
            block.packed = True
            self._queue(block)
            return
        self.breaks = 0
        if reply.outcome is not None:
            place(self.outcome, block.rows, reply.outcome)
            if self.told is not None:
                self.told(pick(self.inputs, block.rows), reply.outcome)
        self.fault = self.fault or reply.error
        if reply.error is not None or stops(self.box, self.outcome):
            self._stop()

    def _broken(self, executor: Executor | None, error: BaseException) -> None:
        """An executor broke: run again what it had, each block alone, and look whose fault it was."""
        mine = [future for future, block in self.flying.items() if block.executor is executor]
        for future in mine:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._land(future)
        lost = [future for future in mine if future in self.flying]
        # Each worker's first reply is that it has not got the box: without one, none has come up.
        came_up = self.owner._answered or executor is not self.owner._current
        late = any(self._late(self.flying[future]) for future in lost)
        for future in reversed(lost):
            block = self.flying.pop(future)
            # A process pool of Python 3.11 that meets a cancelled future while it breaks stops there.
            if not isinstance(executor, ProcessPoolExecutor):
                future.cancel()
            block.packed = False
            if not came_up:
                self._settle(block, Ledger())
                self._queue(block)
                continue
            self._lose(block)
            if block.alone or (late and len(lost) == 1):
                self._blame(block)
            else:
                block.alone = not late or self._late(block)  # else it was another's time that was up
                self._queue(block)
        self._replace(executor, f"it broke ({type(error).__name__}: {error})", error)

    def _lose(self, block: _Block) -> None:
        """An attempt that gives no answer: how far it got is not known, so all its rows count as run."""
        here = block.task is not None and block.task.here
        self._settle(block, Ledger() if here else Ledger(rows_run=len(block.rows)))

    def _blame(self, block: _Block) -> None:
        """A worker died of this block: its rows run alone; a single row has failed."""
        late = self._late(block)
        self.breaks = 0
        if len(block.rows) > 1:
            self.suspects.extend(_Block([row], alone=True) for row in block.rows)
        else:
            self._fail(block.rows[0], Failure.TIMED_OUT if late else Failure.LOST)

    def _fail(self, row: int, failure: Failure, error: Exception | None = None) -> None:
        if failure is Failure.TIMED_OUT:
            error = TimeoutError(f"more than {self.owner.timeout:g} s")
        self.outcome.failed[row] = FailedRow(failure, error)
        if stops(self.box, self.outcome):
            self._stop()

    def _give_up(self, future: Future[Reply]) -> None:
        """A block is late, and its worker cannot be ended: leave it behind, with the executor it is in."""
        block = self.flying.pop(future)
        _cancelled(future)
        self._lose(block)
        self.breaks = 0
        if len(block.rows) > 1:
            self.waiting.extendleft(_Block([row]) for row in reversed(block.rows))
        else:
            self._fail(block.rows[0], Failure.TIMED_OUT)
        if isinstance(block.executor, ThreadPoolExecutor) and self.owner._replaceable:
            for other, left in list(self.flying.items()):
                if left.executor is block.executor and other.cancel():
                    self._withdraw(other)
                    self._queue(left)
            self.owner._replace(block.executor, "a row hangs", None, kill=False)
            return
        self.left.append(future)
        workers = getattr(block.executor, "_max_workers", None)
        if workers and sum(not one.done() for one in self.left) >= workers and (self.flying or self.waiting):
            raise ExecutorError(
                f"{self.box!r}: expected an executor that runs blocks, but all its {workers} workers are at "
                "rows that hang. Give a function that makes the executor, and it is replaced."
            )

    def _replace(self, executor: Executor | None, why: str, error: BaseException) -> None:
        self.breaks += 1
        if self.breaks > _BREAKS:
            raise ExecutorError(
                f"{self.box!r}: expected an executor that runs blocks, but {why}, "
                f"{counted(self.breaks, 'time')} in a row with no block finished. See what its workers "
                "print; a script that starts processes needs if __name__ == '__main__'."
            ) from error
        self.owner._replace(executor, why, error, kill=isinstance(error, BrokenExecutor))

    def _stop(self) -> bool:
        """Hand in nothing more, and take back what has not begun; whether there was anything to take back."""
        self.stopped = True
        flying = list(self.flying)
        for future in flying:
            if _cancelled(future):
                self._withdraw(future)
        self.withdrawn = self.withdrawn or len(self.flying) < len(flying)
        return self.withdrawn

    def _withdraw(self, future: Future[Reply]) -> None:
        self._settle(self.flying.pop(future), Ledger())

    def _settle(self, block: _Block, counts: Ledger) -> None:
        """Count what became of an attempt, and take back what its worker was lent of a budget."""
        assert block.task is not None
        self.box.ledger.settle(block.task.loan, counts)
        block.task.loan = None


def _cancelled(future: Future[Reply]) -> bool:
    """Cancel a block that has not begun; whether that was in time.

    A process pool that breaks tells all its futures so, and where one was cancelled, the thread that does it
    ends with InvalidStateError (Python 3.11). A cancelled future need not hear of it.
    """

    def unless_cancelled(error: BaseException | None) -> None:
        if not future.cancelled():
            Future.set_exception(future, error)

    vars(future)["set_exception"] = unless_cancelled
    return future.cancel()
