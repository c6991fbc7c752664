"""`Parallel`: blocks of rows on the workers of any `concurrent.futures.Executor`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from blackbox.checks import check_count, check_positive
from blackbox.errors import ConfigurationError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.executors import HeldExecutor
from blackbox.wrappers.identity import described
from blackbox.wrappers.parallel_call import BlockReport, ParallelCall
from blackbox.wrappers.workers import PackedBox
from blackbox.wrappers.wrapper import Wrapper

_CHANGING = {"_ledger", "failures", "isolates"}  # these travel with every block

LOOKED_INTO = 2**20  # bytes of a container or array that are read at each call

_report: ContextVar[BlockReport | None] = ContextVar("blackbox.wrappers.parallel.report", default=None)


@contextmanager
def blocks_reported(report: BlockReport | None) -> Iterator[None]:
    """Let a function have the rows of each block that is back, and their outcome, in this context.

    Args:
        report: is called with them; None for nothing.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


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
    attributes is assigned anew, or weights of a torch module, a list, a dictionary or an array that it holds
    are written to; its rows are on the CPU. Not seen is what is written into containers and arrays of more
    than a MiB, and into other objects.
    Threads share the box itself, which must then be thread-safe. A `Parallel` that is called in a thread of
    its own executor runs its blocks there, one after another.

    What can go wrong, and what happens then:

    - A row that raises or is not finite has failed, as in this process; faults of the box are raised.
    - A worker that dies (killed, out of memory) takes its pool with it, and nothing reports whose rows it
      ran. Blocks that were with the pool run again, each by itself. If its worker dies once more, a block is
      split into rows, and a row whose worker dies even then has failed (`LOST`).
    - If a block takes longer than `timeout`, a process of a pool ends itself, and the block's rows run alone;
      a row that takes longer alone has failed (`TIMED_OUT`). Other workers (threads, Dask, MPI) cannot be
      ended: the row is given up and the worker left behind. If that is a thread, Python waits for it at exit;
      a program that a `CommandLine` runs in it is killed.
    - An interrupt (Ctrl-C) kills the processes of a pool, and the programs that threads wait for.
    - If this process is killed, the processes of a pool end, and with them their programs (on Linux) and what
      those wrote; code that holds Python's lock (GIL) for the length of a row ends after that row.
    - A Dask cluster whose workers have all died keeps rows for those that may come. If none comes for
      five minutes, `ExecutorError` is raised. For a cluster's first worker there is no limit.
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
    ) -> None:
        """Check, then wrap."""
        inner_box = box if isinstance(box, BlackBoxFunction) or not callable(box) else box()
        super().__init__(inner_box)
        self.block = check_count("Parallel", "block", block)
        self.in_flight = None if in_flight is None else check_count("Parallel", "in_flight", in_flight)
        self.timeout = None if timeout is None else check_positive("Parallel", "timeout", timeout)
        if not (isinstance(executor, Executor) or callable(executor)):
            raise ConfigurationError(
                "Parallel, executor: expected a concurrent.futures.Executor or a function that makes one, "
                f"got {type(executor).__name__}. For Dask give client.get_executor."
            )
        self._executor, self._packed_box = HeldExecutor(executor), PackedBox(box)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Block by block on the workers."""
        if not isinstance(self._executor.current, ThreadPoolExecutor):  # whose threads have the box itself
            self._packed_box.notice(_attributes(self.box))
        report = _report.get()
        with blocks_reported(None):  # threads run the box in this context; it may have a Parallel inside
            return ParallelCall(self, self._executor, self._packed_box, inputs, report).run()

    def box_changed(self) -> None:
        """Give workers the box anew, as it is now; workers that make it themselves could not have it so."""
        self._packed_box.renew()

    def close(self) -> None:
        """Shut down an executor that was made here; a later call makes another."""
        self._executor.close()

    def __enter__(self) -> Self:
        """Return itself for `with`, which closes it at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Show the box and the size of blocks, on which the bits depend."""
        return f"Parallel({self.box!r}, block={self.block})"


def _attributes(box: BlackBoxFunction) -> dict[tuple[int, str], Any]:
    """The attributes of a box and of the wrappers around it, but for what each call changes."""
    attributes: dict[tuple[int, str], Any] = {}
    depth = 0
    while True:
        wraps = isinstance(box, Wrapper)
        for key, value in vars(box).items():
            if key not in _CHANGING and not (wraps and key.startswith("_")):
                attributes[depth, key] = value
                attributes[depth, f"inside of {key}"] = _inside(value)
        if not isinstance(box, Wrapper):
            return attributes
        box, depth = box.box, depth + 1


class _Full(Exception):
    """More bytes than are looked at."""


class _Digest:
    """A file that keeps only a digest, of at most `LOOKED_INTO` bytes."""

    def __init__(self) -> None:
        self.digest, self._bytes_left = blake2b(digest_size=16), LOOKED_INTO

    def write(self, data: Any) -> int:
        """Take more bytes in, or refuse them."""
        size = len(memoryview(data).cast("B"))
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise _Full
        self.digest.update(data)
        return size


def _inside(value: Any) -> bytes | None:
    """Describe the state inside an attribute, which code may write into: a module, containers, arrays."""
    if isinstance(value, Tensor | nn.Module):
        inside = [value] if isinstance(value, Tensor) else [*value.parameters(), *value.buffers()]
        try:
            return described("box", [tensor.detach() for tensor in inside]).encode()
        except ConfigurationError:  # numbers that cannot be read: those of a meta tensor
            return None
    if not isinstance(value, dict | list | set | bytearray | np.ndarray):
        return None
    file = _Digest()
    try:
        pickle.Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception:  # too large, or none that can be pickled, which is said where the box is sent
        return None
    return file.digest.digest()
