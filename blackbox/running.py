"""Running rows: one by one or as a block, halving a block that raises, and checking what came back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from blackbox.arrays import as_tensor, failed_outputs, finite_rows
from blackbox.errors import BlackBoxError, DtypeError, OutputError
from blackbox.failures import FailedRow, Failure, Outcome
from blackbox.spec import ArraySpec

if TYPE_CHECKING:
    from blackbox.function import BlackBoxFunction


def run_block(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """All rows by one `evaluate_rows`; under "keep" a block that raises is halved down to the bad rows.

    Halving costs a bad row about 2 log2(rows) calls more, and keeps the answers of all the others.
    """
    count = len(inputs[0])
    box.ledger.rows_run += count
    try:
        given = _call(box, box.evaluate_rows, inputs)
    except BlackBoxError:
        raise
    except Exception as error:
        if box.failures == "raise" or count == 1:
            failed = FailedRow(Failure.RAISED, error)
            return Outcome(failed_outputs(box.outputs, inputs), dict.fromkeys(range(count), failed))
        middle = count // 2
        first, second = (
            run_block(box, tuple(t[half] for t in inputs)) for half in (slice(middle), slice(middle, None))
        )
        outputs = tuple(torch.cat(pair) for pair in zip(first.outputs, second.outputs, strict=True))
        return Outcome(outputs, first.failed | {middle + row: why for row, why in second.failed.items()})
    return mark_non_finite(Outcome(_checked(box, given, (count,), inputs)))


def run_each(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """One `evaluate` a row; under "raise" the first that raises ends it."""
    outcome = Outcome(failed_outputs(box.outputs, inputs))
    for row in range(len(inputs[0])):
        box.ledger.rows_run += 1
        try:
            given = _call(box, box.evaluate, tuple(t[row] for t in inputs))
        except BlackBoxError:
            raise
        except Exception as error:
            outcome.failed[row] = FailedRow(Failure.RAISED, error)
            if box.failures == "raise":
                return outcome
            continue
        for whole, part in zip(outcome.outputs, _checked(box, given, (), inputs), strict=True):
            whole[row] = part
    return mark_non_finite(outcome)


def mark_non_finite(outcome: Outcome) -> Outcome:
    """Add rows with a non-finite float output to the failed ones, unless there with another reason."""
    for row in torch.nonzero(~finite_rows(outcome.outputs)).flatten().tolist():
        outcome.failed.setdefault(row, FailedRow(Failure.NON_FINITE))
    return outcome


def _call(box: BlackBoxFunction, method: Any, inputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
    # Copies: a solver that works in place must not change the caller's arrays.
    if box.arrays == "torch":
        with torch.no_grad():
            return method(*(t.clone() for t in inputs))
    return method(*(np.array(t.cpu().numpy()) for t in inputs))


def _checked(
    box: BlackBoxFunction, given: object, leading: tuple[int, ...], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The outputs as tensors on the caller's device, or `OutputError` where they break their specs."""
    outputs = given if isinstance(given, tuple | list) else (given,)
    if len(outputs) != len(box.outputs):
        expected = ", ".join(spec.name for spec in box.outputs)
        raise OutputError(
            f"{box!r}: expected {len(box.outputs)} outputs ({expected}), got {len(outputs)}. "
            "Return a tuple with one array per output spec."
        )
    device = inputs[0].device
    pairs = zip(box.outputs, outputs, strict=True)
    return tuple(
        _checked_output(f"{box!r}, output {s.name!r}", s, out, leading).to(device) for s, out in pairs
    )


def _checked_output(where: str, spec: ArraySpec, output: object, leading: tuple[int, ...]) -> Tensor:
    try:
        tensor = as_tensor(output)
    except (DtypeError, ValueError) as error:  # ValueError: NumPy on ragged lists
        raise OutputError(
            f"{where}: expected an array of numbers, got {type(output).__name__}. Return NumPy or torch."
        ) from error
    expected = (*leading, *spec.shape)
    if tuple(tensor.shape) != expected:
        raise OutputError(
            f"{where}: expected shape {expected}, got {tuple(tensor.shape)}. "
            "evaluate returns one row without a leading axis, evaluate_rows all of them, rows first."
        )
    accepted = tensor.is_floating_point() if spec.dtype is None else spec.accepts(tensor.dtype)
    if not accepted:
        raise OutputError(
            f"{where}: expected {spec.dtype or 'a floating dtype'}, got {str(tensor.dtype)[6:]}. "
            "Convert it before returning, or say so in the output spec."
        )
    return tensor
