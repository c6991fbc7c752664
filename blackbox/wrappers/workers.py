"""The traffic with workers: a box once, rows as plain memory, answers with their counts."""

from __future__ import annotations

import contextvars
import faulthandler
import os
import pickle
import traceback
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from blackbox.arrays import as_tensor
from blackbox.ending import end_with
from blackbox.errors import BlackBoxError, ConfigurationError
from blackbox.failures import FailedRow, Outcome, Policy, exits_as_errors
from blackbox.function import BlackBoxFunction
from blackbox.ledger import Budget, Ledger, Loan

# The executors, outermost first, that this very code runs on a thread of.
occupied: ContextVar[tuple[Executor, ...]] = ContextVar("blackbox.wrappers.workers.occupied", default=())
_KEPT = 4  # boxes that a worker keeps; more come from stacks that are no longer used


class PackedBox:
    """A box as workers get it: pickled once, and again after one of its attributes was assigned anew.

    A copy in another process, as a pickle makes, has not packed anything yet.

    Args:
        source: the box, or the function that makes it.

    Attributes:
        key: tells this state of the box from all others, in any process.
    """

    def __init__(self, source: BlackBoxFunction | Callable[[], BlackBoxFunction]) -> None:
        self._source = source
        self.key = uuid.uuid4().hex
        self._bytes: bytes | None = None
        self._attributes: dict[tuple[int, str], Any] | None = None  # those of the last call

    @property
    def was_packed(self) -> bool:
        """True if any worker may have it, in its present state."""
        return self._bytes is not None

    def pickled(self) -> bytes:
        """The box, or the function that makes it.

        Raises:
            ConfigurationError: it cannot be pickled.
        """
        if self._bytes is None:
            try:
                self._bytes = pickle.dumps(self._source)
            except Exception as error:
                raise ConfigurationError(
                    f"Parallel, box: expected one that can be pickled for other processes, got "
                    f"{self._source!r} ({type(error).__name__}: {error}). Give a function of a module that "
                    "makes the box."
                ) from error
        return self._bytes

    def notice(self, attributes: dict[tuple[int, str], Any]) -> None:
        """See whether an attribute is another object, or has other contents, than when the box was packed.

        Raises:
            ConfigurationError: one is, and workers make the box by a function.
        """
        old_attributes = self._attributes
        if self.was_packed and old_attributes is not None:
            if attributes.keys() != old_attributes.keys() or not all(
                attributes[name] is old_attributes[name]
                or (isinstance(old_attributes[name], bytes) and attributes[name] == old_attributes[name])
                for name in attributes
            ):
                self.renew()
        self._attributes = attributes

    def renew(self) -> None:
        """Give workers the box anew, as it is now.

        Raises:
            ConfigurationError: they made it by a function, and could not have it so.
        """
        if self.was_packed and not isinstance(self._source, BlackBoxFunction):
            raise ConfigurationError(
                "Parallel, box: expected one that stays as the function makes it, got one that was changed "
                "after workers had made theirs. Change what the function makes, in a new Parallel."
            )
        self.key, self._bytes, self._attributes = uuid.uuid4().hex, None, None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it without this process's own parts."""
        return PackedBox, (self._source,)


class Task:
    """A block of rows on its way to a worker; in this very process it has the box itself.

    No dataclass: Dask looks into those, and would pickle the box.

    Args:
        box: the box, which threads of this process use as it is.
        context: the context in which these threads run it; neither is sent to workers.
        key: distinguishes the box from all others, in any process.
        packed: the box, or the function that makes it, pickled; None where the worker should have it.
        inputs: the rows.
        loan: how many rows the worker may run, see `Ledger.lend`; None for any number.
        timeout: seconds after which the worker's process ends itself; None for never.
        owner: the process with which the worker's process has to end; None for none.

    Attributes:
        here: whether it has begun in this process.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        context: contextvars.Context,
        key: str,
        packed: bytes | None,
        inputs: tuple[Tensor, ...],
        loan: Loan | None,
        timeout: float | None,
        owner: int | None = None,
    ) -> None:
        self.local: tuple[BlackBoxFunction, contextvars.Context] | None = box, context
        self.failures: Policy = box.failures
        self.isolates = box.isolates
        self.key, self.packed, self.inputs, self.timeout = key, packed, inputs, timeout
        self.loan, self.owner = loan, owner
        self.here = False
        self.attempt = uuid.uuid4().hex  # no two are equal: Dask would give the one's answer for the other

    def __getstate__(self) -> dict[str, Any]:
        """Pickle it without the box, and tensors as arrays: torch would send each in shared memory."""
        return vars(self) | {"local": None, "inputs": _arrays(self.inputs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Tensors again."""
        vars(self).update(state | {"inputs": tuple(map(as_tensor, state["inputs"]))})


@dataclass
class Reply:
    """The result of a block in a worker.

    Attributes:
        outcome: answers and failed rows; None with an error, or where the box is missing.
        error: a fault of the box, to be raised.
        counts: the counts of another process for this block.
        missing: the worker has not got the box yet, and has run nothing.
    """

    outcome: Outcome | None = None
    error: Exception | None = None
    counts: Ledger | None = None
    missing: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Tensors as arrays, errors as what can be pickled."""
        state = dict(vars(self))
        if self.outcome is not None:
            plain_failures: dict[int, FailedRow] = {}  # rows that share a reason still do
            for why in self.outcome.failed.values():
                if id(why) not in plain_failures:
                    plain_failures[id(why)] = FailedRow(why.failure, why.error and _portable(why.error))
            failed = {row: plain_failures[id(why)] for row, why in self.outcome.failed.items()}
            state["outcome"] = (_arrays(self.outcome.outputs), failed)
        state["error"] = self.error and _portable(self.error)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """An outcome again."""
        if state["outcome"] is not None:
            arrays, failed = state["outcome"]
            state = state | {"outcome": Outcome(tuple(map(as_tensor, arrays)), failed)}
        vars(self).update(state)


def run(task: Task) -> Reply:
    """Run a block of rows, in a thread of the caller's process or in another process."""
    with exits_as_errors():  # of what makes the box, too: an executor would end its worker, or pass it on
        return _reply(task)


def _reply(task: Task) -> Reply:
    if task.local is not None:  # it counts in its own ledger, the caller's, under the caller's budgets
        box, context = task.local
        task.here = True
        context.run(box.ledger.settle, task.loan, Ledger())  # it is the caller's own
        task.loan = None
        return context.run(_run, box, task)
    if task.owner is not None:
        end_with(task.owner)
    box = _take(task)
    if box is None:
        return Reply(missing=True)
    try:
        box.failures, box.isolates = task.failures, task.isolates
        counts_before = box.ledger.copy()
        with _bounded(box.ledger, task.loan), _ending_the_process_after(task.timeout):
            reply = _run(box, task)
        return replace(reply, counts=box.ledger.since(counts_before))
    finally:
        with _taking:
            if task.key in _boxes:
                _boxes[task.key].idle.append(box)


def _run(box: BlackBoxFunction, task: Task) -> Reply:
    try:
        return Reply(outcome=box.run_rows(task.inputs))
    except BlackBoxError as error:
        return Reply(error=error)


def _bounded(ledger: Ledger, loan: Loan | None) -> Any:
    """Keep to what was lent: the rows needed are sure, the others are for rows that are run again."""
    if loan is None:
        return nullcontext()
    return Budget(ledger, ledger.rows_run + loan.total).reserved(loan.rows)


@contextmanager
def _ending_the_process_after(timeout: float | None) -> Iterator[None]:
    """End this process at once if the block takes longer: foreign code that hangs reacts to nothing else."""
    if timeout is None:
        yield
        return
    with open(os.devnull, "w") as nowhere:  # for the traceback
        faulthandler.dump_traceback_later(timeout, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class _KnownBox:
    """A pickled box in a worker, and the boxes made from it that no thread is using.

    A worker with several threads (Dask) has a box for each, so no box needs to be safe for threads.
    """

    packed: bytes
    idle: list[BlackBoxFunction] = field(default_factory=list)


_boxes: OrderedDict[str, _KnownBox] = OrderedDict()  # in a worker, by `Task.key`
_taking = Lock()


def _take(task: Task) -> BlackBoxFunction | None:
    with _taking:
        if task.key not in _boxes:
            if task.packed is None:
                return None
            _boxes[task.key] = _KnownBox(task.packed)
            while len(_boxes) > _KEPT:
                _boxes.popitem(last=False)
        _boxes.move_to_end(task.key)
        entry = _boxes[task.key]
        if entry.idle:
            return entry.idle.pop()
    new_box = pickle.loads(entry.packed)
    return new_box if isinstance(new_box, BlackBoxFunction) else new_box()


def _arrays(tensors: tuple[Tensor, ...]) -> list[Any]:
    return [(t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for t in tensors]


def _portable(error: Exception) -> Exception:
    """The error if it survives pickling, else its words; with its traceback as a note."""
    where = "".join(traceback.format_tb(error.__traceback__))
    try:
        twin = pickle.loads(pickle.dumps(error))
        portable = twin if type(twin) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    if where:
        portable.add_note(f"In the worker:\n{where}")
    return portable
