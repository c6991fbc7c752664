"""One call of a `Parallel`: blocks of rows handed to an executor and taken back, whatever becomes of it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
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
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from blackbox.ending import Stop, ended_by, set_stop
from blackbox.errors import BlackBoxError, BudgetError, ExecutorError
from blackbox.failures import FailedRow, Failure, Outcome
from blackbox.ledger import Ledger
from blackbox.running import ends_early, rows_of, unanswered, write_rows
from blackbox.words import counted
from blackbox.wrappers.executors import (
    HeldExecutor,
    cancelled,
    cluster_client,
    has_processes,
    worker_count,
)
from blackbox.wrappers.workers import PackedBox, Reply, Task, occupied, run

if TYPE_CHECKING:
    from blackbox.wrappers.parallel import Parallel

_LOOKS = 2.0  # seconds between two looks for workers of a cluster
WITHOUT_WORKERS = 300.0  # seconds that a cluster which had workers may be without any while rows wait
_BREAKS = 3  # executors in a row that break before anything comes of it

BlockReport: TypeAlias = Callable[[tuple[Tensor, ...], Outcome], object]
"""Is called with the rows of a block that is back, and their outcome."""


@dataclass(eq=False)
class Block:
    """Rows that go to a worker together.

    Attributes:
        rows: their places in the call.
        alone: a worker died while it was with a pool, so it runs with no others, to see whose fault that was.
        packed: it takes the box along.
        task: the last attempt, once there is one.
        executor: who has it.
        began: when it began, or was handed in where that is not known, in seconds of `time.monotonic`.
        stop: ends the programs of the last attempt, where a thread of this process is at it.
    """

    rows: list[int]
    alone: bool = False
    packed: bool = False
    task: Task = field(init=False)
    executor: Executor = field(init=False)
    began: float | None = None
    stop: Stop = field(default_factory=Stop)


class ParallelCall:
    """One call of a `Parallel`, from its first block to its last.

    Args:
        settings: the `Parallel`, whose settings hold.
        executor: the executor of the blocks.
        packed_box: the box as workers get it.
        inputs: all rows of the call.
        report: a function that is called with each block that is back; None for none.

    Attributes:
        outcome: the outcome of the rows so far.
        waiting: blocks that no executor has.
        suspects: waiting blocks that run alone, since a worker died while it had them.
        flying: blocks that the executor has.
        given_up: blocks that hang in workers which cannot be ended.
        fault: a fault of the box, to be raised when no block is flying any more.
        breaks: executors that broke since the last block came back.
        stopped: whether no further block is handed in.
        withdrawn: whether blocks were taken back from the executor that may have been at them.
        looked: when a cluster's workers were last counted, in seconds of `time.monotonic`.
        deserted: the time since when there are no workers; None while there are some.
    """

    def __init__(
        self,
        settings: Parallel,
        executor: HeldExecutor,
        packed_box: PackedBox,
        inputs: tuple[Tensor, ...],
        report: BlockReport | None,
    ) -> None:
        self.settings, self.executor, self.packed_box = settings, executor, packed_box
        self.box, self.inputs, self.report = settings.box, inputs, report
        count, size = len(inputs[0]), settings.block
        self.outcome = unanswered(self.box, inputs)
        starts = range(0, count, size)
        self.waiting = deque(Block(list(range(start, min(start + size, count)))) for start in starts)
        self.suspects: deque[Block] = deque()
        self.flying: dict[Future[Reply], Block] = {}
        self.fault: Exception | None = None
        self.given_up: list[Future[Reply]] = []
        self.breaks = 0
        self.stopped = self.withdrawn = False
        self.looked = -_LOOKS
        self.deserted: float | None = None

    def run(self) -> Outcome:
        """All blocks, or under "raise" those up to the first failure.

        Raises:
            ExecutorError: there is no executor to go on with.
            BlackBoxError: a fault of the box.
        """
        self.executor.begin_call()
        try:
            with ended_by(self._end_programs):  # where this call runs in a thread of another one
                while self.waiting or self.suspects or self.flying:
                    self._hand_in()
                    self._take_back()
        except BaseException as error:
            if not isinstance(error, Exception):
                self._end_programs()  # threads wait for them, and Python for threads when it exits
            # The user's or the system's wish to stop: Python waits for workers when it exits, and a row may
            # hang. Not where they may be at another thread's blocks.
            if not isinstance(error, Exception) and self.executor.replaceable and self.executor.calls == 1:
                self.executor.replace(self.executor.current, "its workers were ended", None, kill=True)
            raise
        finally:
            self.executor.end_call()
            withdrawn = self._stop()
            current = self.executor.current
            # What its workers are at may hang, and Python waits for them when it exits.
            if withdrawn and self.executor.replaceable and self.executor.calls == 0:
                if has_processes(current):
                    self.executor.replace(current, "its rows were taken back", None, kill=True)
            for block in self.flying.values():  # left behind by an error
                if not self.packed_box.was_packed and has_processes(current):
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
                executor = self.executor.get()
                if executor in occupied.get():  # this call has one of its workers, and would wait for itself
                    write_rows(self.outcome, block.rows, self.box.run_rows(rows_of(self.inputs, block.rows)))
                    if ends_early(self.box, self.outcome):
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
        return self.settings.in_flight or worker_count(executor) or 2 * (os.cpu_count() or 1)

    def _submit(self, block: Block, executor: Executor) -> None:
        inputs = rows_of(self.inputs, block.rows)
        packed = self.packed_box.pickled() if block.packed else None
        needed = self.box.rows_to_run(inputs) if self.box.ledger.bounded() else len(block.rows)
        try:
            loan = self.box.ledger.lend(needed, 1 / self._most(executor))
        except BudgetError as error:  # its first run was set aside, so this is another one
            for row in block.rows:
                self._fail(row, Failure.LOST, error)
            return
        ends_itself, owner = (self.settings.timeout, os.getpid()) if has_processes(executor) else (None, None)
        block.executor, block.stop, context = executor, Stop(), copy_context()
        context.run(occupied.set, (*occupied.get(), executor))
        context.run(set_stop, block.stop)
        block.task = Task(self.box, context, self.packed_box.key, packed, inputs, loan, ends_itself, owner)
        block.began = None if isinstance(executor, ThreadPoolExecutor) else time.monotonic()
        try:
            self.flying[executor.submit(run, block.task)] = block
            if self.stopped:  # said in the meantime
                block.stop.ask()
        except BaseException:
            self._settle(block, Ledger())
            raise

    def _queue(self, block: Block) -> None:
        (self.suspects if block.alone else self.waiting).appendleft(block)

    def _take_back(self) -> None:
        """Wait for blocks that are done, and take them back.

        Apart from `run`, which would keep the last future as a variable while it waits for the next: a Dask
        cluster runs what is kept anew when the worker with its answer dies.
        """
        timeout = self.settings.timeout
        poll = None if timeout is None else min(0.25, max(0.01, timeout / 10))
        if self._look_for_workers():
            poll = min(poll or _LOOKS, _LOOKS, WITHOUT_WORKERS)
        for future in wait(self.flying, poll, FIRST_COMPLETED).done:
            if future in self.flying:
                self._land(future)
        if timeout is not None:
            for future, block in list(self.flying.items()):
                if block.began is None and future.running():
                    block.began = time.monotonic()
                if self._late(block) and block.task.timeout is None and not future.done():
                    self._give_up(future)

    def _look_for_workers(self) -> bool:
        """Say whether a block is with a cluster that can be asked for its workers.

        Raises:
            ExecutorError: it had some, and has had none for `WITHOUT_WORKERS` seconds.
        """
        clients = (cluster_client(block.executor) for block in self.flying.values())
        client = next((client for client in clients if client is not None), None)
        now = time.monotonic()
        if client is None or now - self.looked < min(_LOOKS, WITHOUT_WORKERS / 2):
            return client is not None
        self.looked = now
        try:
            workers = len(client.nthreads())
        except Exception:  # it is gone altogether, as its futures will show
            return True
        self.executor.had_workers |= workers > 0
        if workers or not self.executor.had_workers:
            self.deserted = None
        elif self.deserted is None:
            self.deserted = now
        elif now - self.deserted >= WITHOUT_WORKERS:
            rows = sum(len(block.rows) for block in self.flying.values())
            raise ExecutorError(
                f"{self.box!r}: expected a cluster with workers, but all of them have ended and none has "
                f"come for {WITHOUT_WORKERS:g} s (rows that wait: {rows}). See what the workers print, and "
                "start a cluster whose workers stay."
            )
        return True

    def _late(self, block: Block) -> bool:
        timeout = self.settings.timeout
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
        self.executor.answered |= block.executor is self.executor.current
        if reply.missing:
            block.packed = True
            self._queue(block)
            return
        self.breaks = 0
        if reply.outcome is not None:
            write_rows(self.outcome, block.rows, reply.outcome)
            if self.report is not None:
                self.report(rows_of(self.inputs, block.rows), reply.outcome)
        self.fault = self.fault or reply.error
        if reply.error is not None or ends_early(self.box, self.outcome):
            self._stop()

    def _broken(self, executor: Executor | None, error: BaseException) -> None:
        """An executor broke: run again what it had, each block alone, and look whose fault it was."""
        mine = [future for future, block in self.flying.items() if block.executor is executor]
        for future in mine:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._land(future)
        unfinished = [future for future in mine if future in self.flying]
        # Each worker's first reply is that it has not got the box: without one, none has come up.
        came_up = self.executor.answered or executor is not self.executor.current
        late = any(self._late(self.flying[future]) for future in unfinished)
        for future in reversed(unfinished):
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
            if block.alone or (late and len(unfinished) == 1):
                self._blame(block)
            else:
                block.alone = not late or self._late(block)  # else it was another's time that was up
                self._queue(block)
        self._replace(executor, f"it broke ({type(error).__name__}: {error})", error)

    def _lose(self, block: Block) -> None:
        """An attempt that gives no answer: how far it got is not known, so all its rows count as run."""
        self._settle(block, Ledger() if block.task.here else Ledger(rows_run=len(block.rows)))

    def _blame(self, block: Block) -> None:
        """A worker died of this block: its rows run alone; a single row has failed."""
        late = self._late(block)
        self.breaks = 0
        if len(block.rows) > 1:
            self.suspects.extend(Block([row], alone=True) for row in block.rows)
        else:
            self._fail(block.rows[0], Failure.TIMED_OUT if late else Failure.LOST)

    def _fail(self, row: int, failure: Failure, error: Exception | None = None) -> None:
        if failure is Failure.TIMED_OUT:
            error = TimeoutError(f"more than {self.settings.timeout:g} s")
        self.outcome.failed[row] = FailedRow(failure, error)
        if ends_early(self.box, self.outcome):
            self._stop()

    def _give_up(self, future: Future[Reply]) -> None:
        """A block is late, and its worker cannot be ended: leave it behind, with the executor it is in."""
        block = self.flying.pop(future)
        cancelled(future)
        block.stop.ask()
        self._lose(block)
        self.breaks = 0
        if len(block.rows) > 1:
            self.waiting.extendleft(Block([row]) for row in reversed(block.rows))
        else:
            self._fail(block.rows[0], Failure.TIMED_OUT)
        if isinstance(block.executor, ThreadPoolExecutor) and self.executor.replaceable:
            for other_future, other_block in list(self.flying.items()):
                if other_block.executor is block.executor and other_future.cancel():
                    self._withdraw(other_future)
                    self._queue(other_block)
            self.executor.replace(block.executor, "a row hangs", None, kill=False)
            return
        self.given_up.append(future)
        workers = worker_count(block.executor)
        if (
            workers
            and sum(not future.done() for future in self.given_up) >= workers
            and (self.flying or self.waiting)
        ):
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
        self.executor.replace(executor, why, error, kill=isinstance(error, BrokenExecutor))

    def _end_programs(self) -> None:
        """Hand in nothing more, and end what threads wait for; another thread may say so."""
        self.stopped = True
        for block in list(self.flying.values()):
            block.stop.ask()

    def _stop(self) -> bool:
        """Hand in nothing more, and take back what has not begun; whether there was anything to take back."""
        self.stopped = True
        flying = list(self.flying)
        for future in flying:
            if cancelled(future):
                self._withdraw(future)
        self.withdrawn = self.withdrawn or len(self.flying) < len(flying)
        return self.withdrawn

    def _withdraw(self, future: Future[Reply]) -> None:
        self._settle(self.flying.pop(future), Ledger())

    def _settle(self, block: Block, counts: Ledger) -> None:
        """Count what became of an attempt, and take back what its worker was lent of a budget."""
        self.box.ledger.settle(block.task.loan, counts)
        block.task.loan = None
