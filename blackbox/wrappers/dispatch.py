"""One call's blocks handed to an executor and taken back, whatever becomes of the workers."""

from __future__ import annotations

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
    wait,
)
from dataclasses import dataclass, field

from torch import Tensor

from blackbox.errors import ExecutorError
from blackbox.failures import FailedRow, Failure, Outcome
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.assembly import pick, place, stops, unanswered
from blackbox.wrappers.pool import Pool
from blackbox.wrappers.shipping import Arrays, Crate, Reply, run_in_worker
from blackbox.wrappers.starts import Start, Starts

STARTING = 60.0  # seconds, beside the limit, that a worker may take to come up and begin a block
_BREAKS = 3  # executors in a row that break before anything comes of it


@dataclass(eq=False)
class Block:
    """Rows that go to a worker together.

    Attributes:
        rows: their places in the call.
        name: of this attempt; each further one has another.
        suspect: a worker died while it ran, so it runs with no others, to see whose fault that was.
        packed: it takes the box along.
        executor: where it is.
        handed: when it was handed in, in seconds of `time.monotonic`.
        began: when it was first seen to run; None where that is not known.
    """

    rows: list[int]
    name: str = ""
    suspect: bool = False
    packed: bool = False
    executor: Executor | None = None
    handed: float = 0.0
    began: float | None = None


@dataclass
class Dispatch:
    """One call of `Parallel`.

    Attributes:
        box: whose rows they are; its ledger and policy.
        inputs: the rows.
        pool: who runs them.
        starts: where workers note what they begin.
        crate: gives the box for a worker, packed or not.
        name: gives a new name for an attempt.
        in_flight: how many blocks may be handed in at a time.
        timeout: seconds that a block may take.
    """

    box: BlackBoxFunction
    inputs: tuple[Tensor, ...]
    pool: Pool
    starts: Starts
    crate: Callable[[bool], Crate]
    name: Callable[[], str]
    in_flight: int
    timeout: float | None
    outcome: Outcome = field(init=False)
    waiting: deque[Block] = field(default_factory=deque)
    suspects: deque[Block] = field(default_factory=deque)
    flying: dict[Future[Reply], Block] = field(default_factory=dict)

    def run(self, blocks: list[list[int]]) -> Outcome:
        """All blocks, or under "raise" those up to the first failure.

        Raises:
            ExecutorError: there is no executor to go on with.
            BlackBoxError: a fault of the box.
        """
        self.outcome = unanswered(self.box, self.inputs)
        self.waiting.extend(Block(rows) for rows in blocks)
        self._fault: Exception | None = None
        self._breaks, self._last, self._elsewhere = 0, time.monotonic(), False
        self._killed: list[Executor | None] = []  # by us, so nobody else is to blame
        self._stopped = False
        poll = None if self.timeout is None else min(0.25, max(0.01, self.timeout / 10))
        self.pool.called(1)
        try:
            while self.waiting or self.suspects or self.flying:
                self._hand_in()
                self._take_back(poll)
                if self.timeout is not None:
                    self._give_up_overdue(self.timeout)
        except BaseException as error:
            if not isinstance(error, Exception):  # the user's or the system's wish to stop
                self._end_workers()
            raise
        finally:
            self.pool.called(-1)
            self._stop()
            for block in self.flying.values():  # left behind by an error
                self._withdraw(block)
        if self._fault is not None:
            raise self._fault
        return self.outcome

    def _hand_in(self) -> None:
        if self._stopped:  # what came back since is not run again
            self.waiting.clear()
            self.suspects.clear()
        if self.suspects:
            if not self.flying:
                self._submit(self.suspects.popleft())
            return
        if any(block.suspect for block in self.flying.values()):
            return
        while self.waiting and len(self.flying) < self.in_flight:
            if not self._submit(self.waiting.popleft()):
                return

    def _submit(self, block: Block) -> bool:
        block.name, block.began, block.handed = self.name(), None, time.monotonic()
        crate, arrays = self.crate(block.packed), Arrays(pick(self.inputs, block.rows))
        executor = None
        try:
            executor = block.executor = self.pool.get()
            future = executor.submit(
                run_in_worker, crate, block.name, arrays, self.box.failures, self.box.isolates
            )
        except Exception as error:  # shut down, broken, or its cluster is gone
            self._queue(block)
            self._replace(executor, f"it takes no more ({type(error).__name__}: {error})", error)
            return False
        self.flying[future] = block
        return True

    def _queue(self, block: Block) -> None:
        (self.suspects if block.suspect else self.waiting).appendleft(block)

    def _take_back(self, poll: float | None) -> None:
        """Wait for blocks that are done, and take them back.

        Apart from `run`, which would keep the last future as a variable while it waits for the next: a Dask
        cluster runs what is kept anew when the worker with its answer dies.
        """
        for future in wait(self.flying, poll, FIRST_COMPLETED).done:
            if future in self.flying:
                self._land(future)

    def _land(self, future: Future[Reply]) -> None:
        """Take back a block that is done."""
        block = self.flying[future]
        try:
            reply = future.result()
        except (BrokenExecutor, CancelledError) as error:
            self._lose(block.executor, error)
            return
        except Exception as error:
            del self.flying[future]
            if type(error).__name__ != "KilledWorker":  # Dask's: this block's workers died, one by one
                raise ExecutorError(
                    f"{self.box!r}: expected an executor that runs blocks, but one could not be run "
                    f"({type(error).__name__}: {error}). Workers need the same packages and the box's "
                    "module; a box that cannot be made from a pickle needs a function that makes it."
                ) from error
            self._withdraw(block)
            self._blame(block)
            return
        del self.flying[future]
        if reply.missing:
            block.packed = True
            self._queue(block)
            return
        self._last, self._breaks = time.monotonic(), 0
        starts = self.starts.all().get(block.name, [])
        self._elsewhere |= reply.counts is not None and not starts
        self._count_lost(block, starts, came_back=reply.counts is not None)
        if reply.counts is not None:
            self.box.ledger.add(reply.counts)
        if reply.worker:
            self.pool.note(reply.worker, reply.seconds)
        if reply.outcome is not None:
            place(self.outcome, block.rows, reply.outcome)
        self._fault = self._fault or reply.error
        if reply.error is not None or (reply.outcome is not None and stops(self.box, reply.outcome)):
            self._stop()

    def _lose(self, executor: Executor | None, error: BaseException) -> None:
        """An executor broke: run again what it had, and look whose fault it was."""
        mine = [(future, block) for future, block in self.flying.items() if block.executor is executor]
        whole = [future for future, _ in mine if _answered(future)]
        for future in whole:
            self._land(future)
        for future, block in reversed(mine):
            if future in whole or future not in self.flying:
                continue
            del self.flying[future]
            # A process pool of Python 3.11 that meets a cancelled future while it breaks stops there.
            if not isinstance(executor, ProcessPoolExecutor):
                future.cancel()
            # Withdrawn, since workers of a broken pool live for a while and take what is in their queue.
            if not self._withdraw(block) or executor in self._killed:
                self._queue(block)
            elif block.suspect:
                self._blame(block)
            else:
                block.suspect = True
                self._queue(block)
        self._replace(executor, f"it broke ({type(error).__name__}: {error})", error)

    def _blame(self, block: Block) -> None:
        """A worker died of this block: its rows run alone; a single row has failed."""
        self._breaks = 0
        if len(block.rows) > 1:
            self.suspects.extend(Block([row], suspect=True) for row in block.rows)
        else:
            self._fail(block.rows[0], FailedRow(Failure.LOST))

    def _fail(self, row: int, why: FailedRow) -> None:
        self.outcome.failed[row] = why
        if stops(self.box, self.outcome):
            self._stop()

    def _give_up_overdue(self, timeout: float) -> None:
        begun, now = self.starts.all(), time.monotonic()
        for future, block in list(self.flying.items()):
            if future not in self.flying or future.done():
                continue
            if block.began is None and block.name in begun:
                block.began = now
            if block.began is not None and now - block.began > timeout:
                self._give_up(future, block, timeout)
            elif block.began is None and now - max(block.handed, self._last) > timeout + STARTING:
                if self._elsewhere:  # on another machine: when it began is not known
                    self._give_up(future, block, timeout)
                else:
                    del self.flying[future]
                    future.cancel()
                    self._withdraw(block)
                    self._queue(block)
                    self._replace(
                        block.executor, f"no worker took a block for {timeout + STARTING:g} s", None
                    )

    def _give_up(self, future: Future[Reply], block: Block, timeout: float) -> None:
        """A block hangs: its worker is ended where that can be done, its rows run alone."""
        del self.flying[future]
        future.cancel()
        workers = self._withdraw(block)
        self._last, self._breaks = time.monotonic(), 0
        if self.pool.replaceable:
            if any(worker.own for worker in workers):  # a thread: leave it, and its executor
                self._abandon(block.executor)
            elif workers:
                self._killed.append(block.executor)
                for worker in workers:
                    worker.kill()
                self.pool.end(block.executor)  # which breaks now, and loses the others' blocks anyway
        if len(block.rows) > 1:
            self.waiting.extendleft(Block([row]) for row in reversed(block.rows))
        else:
            error = TimeoutError(f"more than {timeout:g} s")
            self._fail(block.rows[0], FailedRow(Failure.TIMED_OUT, error))

    def _end_workers(self) -> None:
        """End workers that are at a block: Python waits for them when it exits, and a row may hang."""
        if not self.pool.replaceable:
            return
        alone = self.pool.calls == 1  # else its workers may be at another thread's blocks
        # The current one may be starting a worker, with no block noted yet.
        executors = {self.pool.current} if alone else set()
        for future, block in self.flying.items():
            future.cancel()
            executors.add(block.executor)
            for worker in self._withdraw(block):
                if not worker.own:
                    worker.kill()
        self.flying.clear()
        for executor in executors:
            self.pool.replace(executor, "its workers were ended", None, end=alone)

    def _abandon(self, executor: Executor | None) -> None:
        for future, block in list(self.flying.items()):
            if block.executor is executor and future.cancel():
                del self.flying[future]
                self._queue(block)
        self.pool.replace(executor, "a row hangs", None)

    def _replace(self, executor: Executor | None, why: str, error: BaseException | None) -> None:
        self._breaks += 1
        if self._breaks > _BREAKS:
            raise ExecutorError(
                f"{self.box!r}: expected an executor that runs blocks, but {why}, {self._breaks} times "
                "in a row with no block finished. See what its workers print; a script that starts "
                "processes needs if __name__ == '__main__'."
            ) from error
        self.pool.replace(executor, why, error, end=isinstance(error, BrokenExecutor))

    def _withdraw(self, block: Block) -> list[Start]:
        """Give a block up: where it has not begun it does not begin any more; where it has, its starts."""
        starts = self.starts.withdraw(block.name)
        self._count_lost(block, starts)
        return starts

    def _count_lost(self, block: Block, starts: list[Start], came_back: bool = False) -> None:
        """Attempts in other processes that did not come back: how far they got is not known, so all rows."""
        begun = sum(not start.own for start in starts)
        self.box.ledger.count(rows_run=max(0, begun - came_back) * len(block.rows))
        self.starts.forget(block.name)

    def _stop(self) -> None:
        """Hand in nothing more, and take back what has not begun."""
        self._stopped = True
        for future, block in list(self.flying.items()):
            if future.cancel():
                del self.flying[future]
                self._withdraw(block)


def _answered(future: Future[Reply]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
