"""Reasons why a row failed, in words that ledger, report and error share; the policy; and listeners."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from blackbox.named_code import hint

if TYPE_CHECKING:  # a ledger is read where nothing is run, without torch
    import numpy as np
    from torch import Tensor

    from blackbox.spec import ArraySpec

Policy = Literal["raise", "keep"]
POLICIES: tuple[Policy, ...] = ("raise", "keep")


class Failure(Enum):
    """The ways in which a row fails; the value is the sentence that people read."""

    RAISED = "the black box raised an error"
    NON_FINITE = "the black box returned a value that is not finite"
    TIMED_OUT = "the row took longer than it may, and was given up"
    LOST = "the worker that ran the row died, and another one after it"
    SKIPPED = "the row was not run because its input was not finite already"


@dataclass(frozen=True)
class FailedRow:
    """One failed row: its failure, and the exception where there was one.

    Attributes:
        failure: The way in which it failed.
        error: The error that was raised.
        where: The row and its box, with its inputs in short; "" where that is not noted.
    """

    failure: Failure
    error: Exception | None = None
    where: str = ""

    def sentence(self) -> str:
        """The failure in words, with those of the exception."""
        if self.error is None:
            return self.failure.value
        return f"{self.failure.value} ({type(self.error).__name__}: {self.error}{hint(self.error)})"

    def sentence_with_inputs(self) -> str:
        """The failure in words, after the row and its inputs where they are noted."""
        return f"{self.where}: {self.sentence()}" if self.where else self.sentence()

    def cause(self) -> str:
        """The failure in one word, for counting: the exception's type, else the kind of failure."""
        if self.failure is Failure.RAISED and self.error is not None:
            return type(self.error).__name__
        return "not_finite" if self.failure is Failure.NON_FINITE else self.failure.name.lower()


@dataclass
class Outcome:
    """The result of a block of rows: outputs, each `(rows, *spec.shape)`, and the rows that failed.

    The tensors own their memory. Values of failed rows mean nothing until the policy has been applied.
    """

    outputs: tuple[Tensor, ...]
    failed: dict[int, FailedRow] = field(default_factory=dict)


@contextmanager
def exits_as_errors(who: str = "the box") -> Iterator[None]:
    """Keep others' code in this block from ending the process: what would end Python becomes an error.

    `sys.exit`, `exit()` and argparse raise `SystemExit`, which is no `Exception`; neither is what a cancelled
    task of asyncio or a Rust extension that panics raises. `KeyboardInterrupt` is the user's, and stays.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception):
        raise
    except SystemExit as error:
        raise exit_error(who, error) from None
    except BaseException as error:
        ends = isinstance(error, GeneratorExit | CancelledError) or type(error).__name__ == "PanicException"
        if not ends:  # such as a test runner's own
            raise
        raise RuntimeError(f"{who} raised {type(error).__name__}: {error}") from error


def exit_error(who: str, stop: SystemExit) -> RuntimeError:
    """Turn a call of `sys.exit` into an error, with its traceback."""
    words = f"{who} called sys.exit({stop.code!r}), where it was to go on or to raise an error"
    return RuntimeError(words).with_traceback(stop.__traceback__)


def whereabouts(
    specs: Sequence[ArraySpec], inputs: Sequence[Tensor], row: int, number: int, not_finite: Sequence[str]
) -> str:
    """Describe a failed row: "row 3 (flow=0.01, state: 64 numbers from -1 to 2), output 'drop'".

    Args:
        specs: The specs of the inputs.
        inputs: The inputs, each `(rows, *spec.shape)`.
        row: The place of the row in the inputs.
        number: The place of the row in the call.
        not_finite: The names of outputs that are not finite.
    """
    short = inputs_in_short(specs, inputs, row)
    named = ", ".join(map(repr, not_finite))
    return f"row {number} ({short})" + (f", output{'s' * (len(not_finite) > 1)} {named}" if named else "")


def inputs_in_short(specs: Sequence[ArraySpec], inputs: Sequence[Tensor], row: int) -> str:
    """Describe a row's inputs: "flow=0.01, size=[2, 0.5], state: 64 numbers from -1 to 2".

    Few numbers have all the digits that it takes to run the row again.
    """
    return ", ".join(_short(spec.name, array[row]) for spec, array in zip(specs, inputs, strict=True))


_FEW = 8  # numbers of an input, of which all are told


def _short(name: str, values: Tensor) -> str:
    if values.numel() == 1:
        values = values.reshape(())
    if values.numel() <= _FEW:
        narrow = values.element_size() < 4  # NumPy has no bfloat16
        return f"{name}={_digits((values.float() if narrow else values).detach().cpu().numpy())}"
    return f"{name}: {values.numel():,} numbers from {values.min().item():.3g} to {values.max().item():.3g}"


def _digits(values: np.ndarray[Any, Any]) -> str:
    """Numbers with as many digits as name them, in the brackets of their axes."""
    if values.ndim:
        return f"[{', '.join(map(_digits, values))}]"
    return str(values[()]).removesuffix(".0")


_MOST = 100  # notes in a list: the first cause is what is looked for, and a run has many calls
_listeners: ContextVar[tuple[list[FailedRow], ...]] = ContextVar("blackbox.failures.listeners", default=())


@contextmanager
def noted() -> Iterator[list[FailedRow]]:
    """Note failed rows of all calls of black boxes in this block, whatever their policy does with them.

        with noted() as causes:
            losses = objective(network, batch)
        if causes:
            print(causes[0].sentence())

    Of each call with failed rows the list receives the first of each cause, for the first hundred of them;
    rows that were skipped (see `Failure`) are noted after those that failed. Rows that a `Retrying` or a
    `Fallback` has mended are not noted. Threads that are started inside the block are not heard,
    nor is the one in which autograd goes back on a GPU.
    """
    causes: list[FailedRow] = []
    token = _listeners.set((*_listeners.get(), causes))
    try:
        yield causes
    finally:
        _listeners.reset(token)


_last = ""  # of the last call with rows that failed, of all threads


def last_cause() -> str:
    """Why rows of a box failed last in this process, as a sentence to end a message with; "" if none did.

    For messages about numbers that came from a box, where the box itself is not at hand.
    """
    return f" The last row that failed in this process: {_last}." if _last else ""


def note(failed: Mapping[int, FailedRow], where: Callable[[int], str] | None = None) -> None:
    """Tell who listens in this context of a call's failed rows, in their order; `where(row)` says which."""
    global _last
    ran = [row for row in sorted(failed) if failed[row].failure is not Failure.SKIPPED]
    if ran:
        place = "" if where is None else where(ran[0])
        _last = replace(failed[ran[0]], where=place).sentence_with_inputs()
    listeners = _listeners.get()
    if listeners:
        first: dict[str, FailedRow] = {}
        for row in sorted(failed):
            if failed[row].cause() not in first:
                place = "" if where is None else where(row)
                first[failed[row].cause()] = replace(failed[row], where=place)
        for causes in listeners:
            causes.extend(list(first.values())[: max(0, _MOST - len(causes))])
