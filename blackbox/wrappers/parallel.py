"""`Parallel`: blocks of rows on the workers of any `concurrent.futures.Executor`."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Self

from torch import Tensor

from blackbox.checks import check_count, check_positive
from blackbox.errors import ConfigurationError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.dispatch import Dispatch
from blackbox.wrappers.pool import Pool
from blackbox.wrappers.shipping import Crate, pack
from blackbox.wrappers.starts import Starts
from blackbox.wrappers.wrapper import Wrapper


class Parallel(Wrapper):
    """Run blocks of rows at the same time, on threads, processes or machines.

        Parallel(box, ThreadPoolExecutor(8))                         # a box that waits or lets go of the GIL
        Parallel(box, lambda: loky.get_reusable_executor(8))         # processes; replaced if one dies
        Parallel(box, dask.distributed.Client(address).get_executor) # a Dask cluster
        Parallel(box, lambda: mpi4py.futures.MPIPoolExecutor())      # MPI: python -m mpi4py.futures script.py
        Parallel(box, lambda: executorlib.SlurmJobExecutor())        # jobs of a queue

    The result equals that of the box called in this process with the same blocks, to the bit where
    workers compute with the same number of threads; blocks are `block` rows in the order of the call,
    however many workers there are. Order is kept. A process gets the box once, pickled, and keeps it;
    its rows are on the CPU. Threads share the box itself, which must then be safe for threads.

    What goes wrong, and what becomes of it:

    - A row that raises or is not finite has failed, as in this process; the box's faults are raised.
    - A worker that dies (killed, out of memory) takes its pool along. What had not begun is run again.
      Blocks that had begun are run again whole, each with nothing beside it; one whose worker dies
      once more is taken apart, and a row of which the worker dies also alone has failed (`LOST`).
    - A block that takes longer than `timeout`: its process is killed and its rows run alone; a row
      that takes longer alone has failed (`TIMED_OUT`). A thread cannot be killed: it is left behind,
      and Python waits for it when it exits.
    - An executor that breaks, shrinks to nothing or is shut down is replaced if a function that makes
      executors was given, else `ExecutorError` is raised.

    Rows run are counted where they are run, and the counts come back with the answers. An attempt
    that began and did not come back counts all its rows as run, since they may have cost something,
    and their repetition counts again: no row that was run is missing in the ledger, but for what a
    scheduler runs anew by itself after its answer has come (Dask, if a worker dies in the moment in which
    its answer is fetched). `Budgeted` and `RateLimited` belong around `Parallel`, since inside each process
    has its own; `Cached` and `Retrying` go on either side.

    Args:
        box: a black box, or a function without arguments that makes one, for boxes that cannot be
            pickled. The function is called here too, for the specs.
        executor: an executor, which stays yours to shut down, or a function that makes one. Workers are
            killed and executors replaced in the second case only.
        block: rows that go to a worker together. 1 suits code that takes seconds for a row; code that
            takes many rows at once wants as many as keep it busy for some tenths of a second.
        in_flight: blocks handed in and not yet back, at most: what bounds memory. Twice this machine's
            cores if None; a cluster wants twice its own.
        timeout: seconds that a block, or a row run alone, may take once it has begun. Workers that do
            not share this machine's disk cannot tell when that is; a minute is added for them.

    Raises:
        ConfigurationError: a setting is out of its range; from a call, the box cannot be pickled.
        ExecutorError: from a call, there is no executor to go on with.
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
        made = box if isinstance(box, BlackBoxFunction) or not callable(box) else box()
        super().__init__(made)
        self.block = check_count("Parallel", "block", block)
        self.in_flight = 2 * (os.cpu_count() or 1)
        if in_flight is not None:
            self.in_flight = check_count("Parallel", "in_flight", in_flight)
        self.timeout = None if timeout is None else check_positive("Parallel", "timeout", timeout)
        self._pool = Pool(executor)
        inner = made
        while isinstance(inner, Wrapper):
            if (
                isinstance(inner, Parallel)
                and isinstance(executor, Executor)
                and inner._pool.given is executor
            ):
                raise ConfigurationError(
                    "Parallel, executor: expected another one than that of the Parallel inside, got it: "
                    "its workers would wait for each other for ever. Take one Parallel away."
                )
            inner = inner.box
        self._source = box
        self._restart()

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Block by block on the workers."""
        count = len(inputs[0])
        blocks = [list(range(start, min(start + self.block, count))) for start in range(0, count, self.block)]
        call = Dispatch(
            self.box, inputs, self._pool, self._starts, self._crate, self._name, self.in_flight, self.timeout
        )
        return call.run(blocks)

    @property
    def worker_seconds(self) -> dict[str, float]:
        """For how long each worker has run rows, by its name; those that died are still listed."""
        return dict(self._pool.seconds)

    def close(self) -> None:
        """Shut down an executor that was made here; a later call makes another."""
        self._pool.close()

    def __enter__(self) -> Self:
        """For `with`, which closes at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _crate(self, packed: bool) -> Crate:
        if packed and self._packed is None:
            try:
                self._packed = pack(self._source)
            except Exception as error:
                raise ConfigurationError(
                    f"{self!r}, box: expected one that can be pickled for other processes, got "
                    f"{type(error).__name__}: {error}. Give a function of a module that makes the box."
                ) from error
        return Crate(self._key, self._starts.folder, self.box, self._packed if packed else None)

    def _name(self) -> str:
        return f"{self._key}-{next(self._names)}"

    def _restart(self) -> None:
        self._key, self._names = uuid.uuid4().hex, itertools.count()
        self._starts = Starts()
        self._packed: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what hangs on this process."""
        own = ("_key", "_names", "_starts", "_packed")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With no executor yet."""
        vars(self).update(state)
        self._restart()

    def __repr__(self) -> str:
        """With the size of blocks, on which the bits hang."""
        return f"Parallel({self.box!r}, block={self.block})"
