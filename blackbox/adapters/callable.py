"""`from_callable`: a black box made of a plain function, without a class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from blackbox.errors import BudgetError, ConfigurationError, OutputError, TryAgain
from blackbox.failures import FailedRow, Failure, Outcome, Policy
from blackbox.function import BlackBoxFunction, check_arrays
from blackbox.notices import warn
from blackbox.running import rows_of
from blackbox.spec import ArraySpec, check_specs

MIXED = (
    "Take vectorized=False for a function of one row. In one of all rows take no mean, maximum or first "
    "number over them (axis=-1, x[:, 0]). Where it is random, say deterministic=False."
)
OF_SHAPES = (
    OutputError,
    IndexError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what arrays of other shapes raise
APART = 1e-3  # of the size of answers, by which they do not differ in calls of another size


def from_callable(
    f: Callable[..., Any],
    *,
    inputs: Sequence[ArraySpec],
    outputs: Sequence[ArraySpec],
    vectorized: bool = False,
    arrays: Literal["numpy", "torch"] = "numpy",
    deterministic: bool = True,
    failures: Policy = "raise",
) -> BlackBoxFunction:
    """A black box that calls a function.

        box = from_callable(drag, inputs=[ArraySpec("shape", (12,))], outputs=[ArraySpec("drag", ())])

    It can be sent to another process where the function can: one at the top level of a module can, a
    lambda cannot with plain pickle.

    Args:
        f: the function; it takes one array for each input and returns one for each output, a tuple if there
            are several.
        inputs: the specs of the inputs, in the order of f's arguments.
        outputs: the specs of the outputs, in the order in which f returns them.
        vectorized: False where f takes one row, as arrays of the specs' shapes; True where it takes all rows
            at once, `(rows, *shape)`. Two or three of its first rows are then asked again, and counted, to
            see that it does.
        arrays: what f gets: "numpy" for NumPy arrays, "torch" for tensors on the caller's device.
        deterministic: False where equal inputs may give different outputs.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Raises:
        ConfigurationError: f cannot be called.
        DefinitionError: the specs or `arrays` make no sense.
    """
    if not callable(f):
        raise ConfigurationError(
            f"from_callable, f: expected a function, got {type(f).__name__}. Give it without calling it."
        )
    inputs, outputs = tuple(inputs), tuple(outputs)
    check_specs("from_callable", "inputs", inputs)
    check_specs("from_callable", "outputs", outputs)
    check_arrays("from_callable", arrays)
    kind = RowsCallable if vectorized else RowCallable
    return kind(f, inputs, outputs, arrays, deterministic, failures)


class _Callable(BlackBoxFunction, abstract=True):
    """The common part of functions of one row and of all rows; made by `from_callable`."""

    def __init__(
        self,
        f: Callable[..., Any],
        inputs: tuple[ArraySpec, ...],
        outputs: tuple[ArraySpec, ...],
        arrays: Literal["numpy", "torch"],
        deterministic: bool,
        failures: Policy,
    ) -> None:
        self.f, self.inputs, self.outputs = f, inputs, outputs
        self.arrays, self.deterministic = arrays, deterministic
        super().__init__(failures=failures)

    def __repr__(self) -> str:
        """Named after the function."""
        return f"from_callable({_name(self.f)})"


class RowCallable(_Callable):
    """A function of one row."""

    def evaluate(self, *arrays: Any) -> Any:
        """One row: the function's outputs."""
        return self.f(*arrays)

    def _hint(self, failed: FailedRow) -> str:
        if failed.failure is not Failure.RAISED or not isinstance(failed.error, IndexError | ValueError):
            return ""
        shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in self.inputs)
        return f"The function is given one row at a time, {shapes}; all at once with vectorized=True. "


class RowsCallable(_Callable):
    """A function of all rows at once, which the first rows show it to be."""

    def evaluate_rows(self, *arrays: Any) -> Any:
        """All rows: the function's outputs."""
        return self.f(*arrays)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """All rows; of the very first ones two are asked again alone, or three where they are two."""
        first = not self.ledger.rows_run
        outcome = super().run_rows(inputs)
        if first:
            self._see_rows(inputs, outcome)
        return outcome

    def _see_rows(self, inputs: tuple[Tensor, ...], outcome: Outcome) -> None:
        """Ask a few rows again, in other places of a call of another size.

        Raises:
            OutputError: the function took rows for numbers of one row.
        """
        count = len(inputs[0])
        good = [row for row in range(count) if row not in outcome.failed]
        if not good:
            return
        last, second_last = good[-1], good[-2:][0]
        # neither row has the place that it had
        rows = [last, last, second_last] if count == 2 else [last, second_last]
        try:
            self.ledger.claim(len(rows))
            again = super().run_rows(rows_of(inputs, rows))
            error = next((why.error for why in again.failed.values()), None)
        except BudgetError:
            return
        except OutputError as wrong:
            again, error = None, wrong
        of_shapes = isinstance(error, OF_SHAPES) and not isinstance(error, TryAgain)
        if of_shapes and any(count in spec.shape for spec in self.inputs):
            raise OutputError(
                f"{self!r}: expected a function of all rows at once, got one that answers {count} rows, as "
                f"many as there are numbers on an axis, and not {len(rows)} of them ({type(error).__name__}: "
                f"{error}). Take vectorized=False for a function of one row."
            ) from error
        if again is None or again.failed or not self.deterministic:
            return
        pairs = zip(outcome.outputs, again.outputs, strict=True)
        if any(_apart(whole[good], whole[rows], part) for whole, part in pairs):
            warn(
                f"{self!r}: expected the same answers to a row whatever is beside it, got others for "
                f"{len(rows)} rows alone than among {count}. {MIXED}",
                RuntimeWarning,
            )

    def _hint(self, failed: FailedRow) -> str:
        if failed.failure is not Failure.RAISED or not isinstance(failed.error, IndexError | ValueError):
            return ""
        return "The function is given all rows at once, rows first; one at a time with vectorized=False. "


def _apart(all_values: Tensor, values: Tensor, others: Tensor) -> bool:
    """Say whether answers differ by more than rounding or a solver's tolerance."""
    size = all_values.double().square().mean().sqrt()
    return bool((others.double() - values.double()).square().mean().sqrt() > APART * size)


def _name(f: Callable[..., Any]) -> str:
    while isinstance(f, functools.partial):
        f = f.func
    return getattr(f, "__qualname__", None) or type(f).__name__
