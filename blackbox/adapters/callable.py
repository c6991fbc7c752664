"""`from_callable`: a black box made of a plain function, without a class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from blackbox.errors import ConfigurationError
from blackbox.failures import FailedRow, Failure, Policy
from blackbox.function import BlackBoxFunction, check_arrays
from blackbox.spec import ArraySpec, check_specs


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
            at once, `(rows, *shape)`.
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
    """What functions of one row and of all rows have in common; made by `from_callable`."""

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
    """A function of all rows at once."""

    def evaluate_rows(self, *arrays: Any) -> Any:
        """All rows: the function's outputs."""
        return self.f(*arrays)


def _name(f: Callable[..., Any]) -> str:
    while isinstance(f, functools.partial):
        f = f.func
    return getattr(f, "__qualname__", None) or type(f).__name__
