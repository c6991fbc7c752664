"""Running rows: one by one or in blocks, halving a block that raises, and checking the results."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from socket import gaierror
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from blackbox.arrays import as_tensor, failed_outputs, finite_rows
from blackbox.errors import BlackBoxError, BudgetError, OutputError, TryAgain
from blackbox.failures import FailedRow, Failure, Outcome, exits_as_errors, whereabouts
from blackbox.outside import unit_of
from blackbox.spec import ArraySpec
from blackbox.words import counted

if TYPE_CHECKING:
    from blackbox.function import BlackBoxFunction


class OutputLengthError(OutputError):
    """An output with the axes of its spec and other lengths, such as of a run that ended early."""


PROBED = 8  # rows of a block: in a smaller one halving costs no more than asking single rows


def run_blocks(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """Blocks of `max_rows`, or all rows as one; none after a failure where the call will raise anyway."""
    size = box.max_rows or len(inputs[0])
    return run_block(box, inputs) if len(inputs[0]) <= size else in_blocks(box, inputs, size, run_block)


def run_block(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """All rows by one `evaluate_rows`; a block that raises is halved down to the bad rows.

    Not so under "raise", unless a wrapper needs to know them: the block then fails whole, as it does where
    the box asks to `TryAgain` later, where its server refuses the connection, or where a budget does not
    allow that rows are run again. Halving keeps the answers of all the others. It costs a bad row up to
    2 ceil(log2(rows)) calls more, and about twice the rows again; the ledger counts them. Where both halves
    raise the same error, and so do single rows of both, it is no matter of rows: the block fails whole.
    """
    outcome = _whole(box, inputs)
    return _halved(box, inputs, outcome) if isinstance(outcome, _Raised) else outcome


class _Raised(Outcome):
    """The outcome of a block that raised as a whole, and may be taken apart: every row has the error."""

    @property
    def error(self) -> FailedRow:
        return self.failed[0]


def _whole(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """All rows by one call."""
    count = len(inputs[0])
    box.ledger.spend(count)
    copies = _copies(box, inputs)
    try:
        answer = _call(box, box.evaluate_rows, copies)
    except TryAgain as error:
        raised = failed_by(box, error)
        return Outcome(failed_outputs(box.outputs, inputs), dict.fromkeys(range(count), raised))
    except BlackBoxError:
        raise
    except Exception as error:
        kind = Outcome if _refused(error) else _Raised
        raised = failed_by(box, error)
        return kind(failed_outputs(box.outputs, inputs), dict.fromkeys(range(count), raised))
    try:
        answers = _checked(box, answer, (count,), inputs)
    except OutputLengthError as error:
        if not _rows_may_fail(box):
            raise
        return _Raised(
            failed_outputs(box.outputs, inputs), dict.fromkeys(range(count), failed_by(box, error))
        )
    # Cloned: a box that answers from a buffer of its own writes over it when the next half is run.
    return mark_non_finite(Outcome(tuple(t.clone() for t in answers)))


def _halved(box: BlackBoxFunction, inputs: tuple[Tensor, ...], raised: _Raised) -> Outcome:
    """A block that raised, taken apart."""
    count = len(inputs[0])
    if ends_early(box, raised) or count == 1 or not _claimed(box, count):
        return raised
    middle = count // 2
    parts = [tuple(t[half] for t in inputs) for half in (slice(middle), slice(middle, None))]
    halves = [_whole(box, part) for part in parts]
    if count >= PROBED and all(map(partial(_same_error, raised), halves)) and _whichever(box, inputs, raised):
        return raised
    first, second = (
        _halved(box, part, half) if isinstance(half, _Raised) else half
        for part, half in zip(parts, halves, strict=True)
    )
    outputs = tuple(torch.cat(pair) for pair in zip(first.outputs, second.outputs, strict=True))
    return Outcome(outputs, first.failed | {middle + row: why for row, why in second.failed.items()})


def _whichever(box: BlackBoxFunction, inputs: tuple[Tensor, ...], raised: _Raised) -> bool:
    """Say whether a block raises whichever rows it has, by about log2(rows) single ones, the middle first."""
    count = len(inputs[0])
    probes = math.ceil(math.log2(count)) | 1  # odd, so that the middle is among them
    spread = [place * (count - 1) // (probes - 1) for place in range(probes)]
    for row in sorted(spread, key=lambda row: abs(row - (count - 1) // 2)):
        single = tuple(t[row : row + 1] for t in inputs)
        if not (_claimed(box, 1) and _same_error(raised, _whole(box, single))):
            return False
    return True


def _same_error(raised: _Raised, outcome: Outcome) -> bool:
    """Say whether both raised errors of one type with one text, but for addresses in memory."""
    return isinstance(outcome, _Raised) and failed_alike([raised.error, outcome.error])


def failed_alike(failed: Iterable[FailedRow]) -> bool:
    """Say whether all raised errors of one type with one text, but for addresses; none asks to wait."""
    errors = [why.error for why in failed]
    kinds = {(type(error), re.sub(r"0x[0-9a-fA-F]+", "", str(error))) for error in errors}
    return len(kinds) == 1 and errors[0] is not None and not isinstance(errors[0], TryAgain)


def _refused(error: BaseException) -> bool:
    """Say whether no server was there to ask: no row can be the reason."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        if isinstance(cause, ConnectionRefusedError | gaierror):
            return True
        causes.append(cause)
        reason = getattr(cause, "reason", None)  # of urllib and urllib3
        context = cause.__context__ if isinstance(cause, OSError) else None  # of requests
        cause = reason if isinstance(reason, BaseException) else cause.__cause__ or context
    return False


def run_each(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """One `evaluate` a row; under "raise" the first that raises ends it, unless a wrapper needs the rest."""
    outcome = unanswered(box, inputs)
    for row in range(len(inputs[0])):
        box.ledger.spend(1)
        copies = _copies(box, tuple(t[row] for t in inputs))
        try:
            answer = _call(box, box.evaluate, copies)
        except Exception as error:
            if isinstance(error, BlackBoxError) and not isinstance(error, TryAgain):
                raise
            outcome.failed[row] = failed_by(box, error)
            if ends_early(box, outcome):
                return outcome
            continue
        try:
            answers = _checked(box, answer, (), inputs)
        except OutputError as error:
            if isinstance(error, OutputLengthError) and _rows_may_fail(box):
                outcome.failed[row] = failed_by(box, error)
                continue
            here = whereabouts(box.inputs, inputs, row, row, ())
            raise OutputError(
                f"{error} That was {here} of {counted(len(inputs[0]), 'row')}."
            ) from error.__cause__
        for whole, part in zip(outcome.outputs, answers, strict=True):
            whole[row] = part
    return mark_non_finite(outcome)


def mark_non_finite(outcome: Outcome) -> Outcome:
    """Add rows with a non-finite float output to the failed ones, unless there with another reason."""
    for row in torch.nonzero(~finite_rows(outcome.outputs)).flatten().tolist():
        outcome.failed.setdefault(row, FailedRow(Failure.NON_FINITE))
    return outcome


# One outcome put together from those of parts of its rows.


def in_blocks(
    box: BlackBoxFunction,
    inputs: tuple[Tensor, ...],
    size: int,
    run: Callable[[Any, tuple[Tensor, ...]], Outcome],
) -> Outcome:
    """Blocks of `size` rows one after another, up to the first failure where the call will raise anyway."""
    outcome = unanswered(box, inputs)
    for first in range(0, len(inputs[0]), size):
        rows = list(range(first, min(first + size, len(inputs[0]))))
        write_rows(outcome, rows, run(box, rows_of(inputs, rows)))
        if ends_early(box, outcome):
            break
    return outcome


def unanswered(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """An outcome of all these rows that knows none of their answers yet.

    Open dtypes are float64, which holds every float that a box may return.
    """
    return Outcome(failed_outputs(box.outputs, inputs))


def write_rows(whole: Outcome, rows: list[int], part: Outcome) -> None:
    """Write a part's answers and failures to these rows of the whole."""
    for target, values in zip(whole.outputs, part.outputs, strict=True):
        target[rows] = values.to(target.device, target.dtype)
    whole.failed.update({rows[row]: why for row, why in part.failed.items()})


def rows_of(inputs: tuple[Tensor, ...], rows: list[int]) -> tuple[Tensor, ...]:
    """Select these rows of the inputs; all rows in their order are handed on as they are."""
    if rows == list(range(len(inputs[0]))):
        return inputs
    return tuple(t[rows] for t in inputs)


def ends_early(box: BlackBoxFunction, outcome: Outcome) -> bool:
    """Say whether the rest of a call need not run: it will raise, and nobody asks for further failures."""
    return bool(outcome.failed) and box.failures == "raise" and not box.isolates


def _rows_may_fail(box: BlackBoxFunction) -> bool:
    """Say whether a failed row is a value that somebody waits for, and not the end of the call."""
    return box.failures == "keep" or box.isolates


def _claimed(box: BlackBoxFunction, rows: int) -> bool:
    """Say whether the budget allows to run rows again; they are then set aside."""
    try:
        box.ledger.claim(rows)
    except BudgetError:
        return False
    return True


def _copies(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    # Copies: a solver that works in place must not change the caller's arrays. Contiguous: its
    # answers, and its foreign code, must not depend on how the caller's memory is laid out.
    if box.arrays == "torch":
        return tuple(t.clone(memory_format=torch.contiguous_format) for t in inputs)
    return tuple(np.array(t.cpu().numpy(), order="C") for t in inputs)


def _call(box: BlackBoxFunction, method: Any, copies: tuple[Any, ...]) -> Any:
    # what trains beside it would compute other numbers without a word, or raise where it divides by zero
    with exits_as_errors(), np.errstate(), _DEFAULT_DTYPE, outside_autocast():
        with torch.no_grad() if box.arrays == "torch" else differentiating():
            return method(*copies)


@contextmanager
def differentiating() -> Iterator[None]:
    """A block in which torch can differentiate, whatever mode the caller is in.

    Queries are asked under `no_grad`; a box whose forces come from torch.autograd would fail in them alone.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield
        changed = not torch.is_grad_enabled()
    if changed:  # by the box, for the whole process: the check of boxes is to see it
        torch.set_grad_enabled(False)


@contextmanager
def outside_autocast() -> Iterator[None]:
    """A block that computes in its own precision, whatever autocast the caller is in.

    A box that is called in the autocast of a network's forward would give numbers rounded to three digits,
    and others in a backward pass, which runs outside of it.
    """
    active = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    with ExitStack() as blocks:
        for device in active:
            blocks.enter_context(torch.autocast(device, enabled=False))
        yield


class _DefaultDtype:
    """Around foreign code: torch's default dtype is as before when the last call under way in a thread ends.

    All threads have one default. Each call that put back what it found would put back what another had set.
    """

    def __init__(self) -> None:
        self._lock, self._calls, self._outer_dtype = Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._outer_dtype = torch.get_default_dtype()
            self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0 and torch.get_default_dtype() != self._outer_dtype:
                torch.set_default_dtype(self._outer_dtype)


_DEFAULT_DTYPE = _DefaultDtype()


def failed_by(box: BlackBoxFunction, error: Exception) -> FailedRow:
    """A row that a box raised an error for."""
    kind = Failure.TIMED_OUT if isinstance(error, TimeoutError) else Failure.RAISED
    # A kept error without its traceback, whose frames would hold this row's arrays in a cycle.
    return FailedRow(kind, error if box.failures == "raise" else error.with_traceback(None))


def _checked(
    box: BlackBoxFunction, answer: object, leading: tuple[int, ...], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The outputs as tensors on the caller's device, or `OutputError` where they break their specs."""
    outputs = answer if isinstance(answer, tuple | list) else (answer,)
    if len(outputs) != len(box.outputs):
        expected = ", ".join(spec.name for spec in box.outputs)
        got, mend = str(len(outputs)), "Return a tuple with one array per output spec."
        if len(box.outputs) == 1 and isinstance(answer, tuple | list):
            got += f", in a {type(answer).__name__}"
            mend = (
                "A tuple or list has one entry for each output: if these are the numbers of one, return "
                "numpy.asarray of them."
            )
        raise OutputError(
            f"{box!r}: expected {counted(len(box.outputs), 'output')} ({expected}), got {got}. {mend}"
        )
    device = inputs[0].device
    pairs = zip(box.outputs, outputs, strict=True)
    return tuple(_checked_output(box, spec, out, leading).to(device) for spec, out in pairs)


def _checked_output(
    box: BlackBoxFunction, spec: ArraySpec, output: object, leading: tuple[int, ...]
) -> Tensor:
    try:
        tensor = as_tensor(output)
    except (TypeError, ValueError, RuntimeError) as error:  # the last two: ragged or tracked lists
        unit = unit_of(output)
        got = type(output).__name__ + (f" of {output.dtype}" if isinstance(output, np.ndarray) else "")
        mend = "Return a NumPy array or a torch tensor with a dtype of torch."
        if unit:
            mend = "Convert it to one unit, and return its values alone."
        raise OutputError(
            f"{box!r}, output {spec.name!r}: expected an array of numbers, got {got}"
            f"{f' in {unit}' if unit else ''}. {mend}"
        ) from error
    expected = (*leading, *spec.shape)
    if tuple(tensor.shape) != expected:
        last = len(leading) == 1 and tuple(tensor.shape) == (*spec.shape, *leading)
        lengths = not last and tensor.ndim == len(expected) and tuple(tensor.shape[: len(leading)]) == leading
        raise (OutputLengthError if lengths else OutputError)(
            f"{box!r}, output {spec.name!r}: expected shape {expected}, got {tuple(tensor.shape)}. "
            "evaluate returns one row without a leading axis, evaluate_rows all of them, rows first"
            + (f": here they are last, np.moveaxis({spec.name}, -1, 0)." if last else ".")
        )
    accepted = tensor.is_floating_point() if spec.dtype is None else spec.accepts(tensor.dtype)
    if not accepted:
        target, got = spec.dtype or "float32", str(tensor.dtype)[6:]
        mend = f"Convert it before returning: numpy.asarray({spec.name}).astype('{target}')"
        if tensor.is_complex():
            mend += " of real numbers, such as its real and imaginary parts"
        elif spec.floating:  # what is declared whole has no gradient, and labels are what is trained through
            mend += f"; an output that is not trained through may be declared, dtype='{got}'"
        raise OutputError(
            f"{box!r}, output {spec.name!r}: expected {spec.dtype or 'a floating dtype'}, got {got}. {mend}."
        )
    return tensor
