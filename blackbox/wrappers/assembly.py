"""One outcome put together from those of parts of its rows."""

from __future__ import annotations

from torch import Tensor

from blackbox.arrays import failed_outputs
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction


def unanswered(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """An outcome of all these rows that knows none of their answers yet.

    Open dtypes are float64, which holds every float that a box may return.
    """
    return Outcome(failed_outputs(box.outputs, inputs))


def place(whole: Outcome, rows: list[int], part: Outcome) -> None:
    """Write a part's answers and failures to these rows of the whole."""
    for target, values in zip(whole.outputs, part.outputs, strict=True):
        target[rows] = values.to(target.device, target.dtype)
    whole.failed.update({rows[row]: why for row, why in part.failed.items()})


def pick(inputs: tuple[Tensor, ...], rows: list[int]) -> tuple[Tensor, ...]:
    """These rows of the inputs; all of them in their order are handed on as they are."""
    if rows == list(range(len(inputs[0]))):
        return inputs
    return tuple(t[rows] for t in inputs)


def stops(box: BlackBoxFunction, outcome: Outcome) -> bool:
    """Whether the rest of a call need not be run: it will raise, and nobody asks what else failed."""
    return bool(outcome.failed) and box.failures == "raise" and not box.isolates
