"""Boxes made of a plain function, in the four kinds that there are, and a table's way to a box error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pytest

from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction
from blackbox.failures import Policy

STATE = ArraySpec("state", (2,))
PAIR = (ArraySpec("field", (2, 3)), ArraySpec("number", ()))


class FunctionBox(BlackBoxFunction, abstract=True):
    """Its specs, arrays and policy are set in `__init__`; `calls` holds what the function was given."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: tuple[ArraySpec, ...] = (STATE,),
        outputs: tuple[ArraySpec, ...] = (STATE,),
        arrays: Literal["numpy", "torch"] = "numpy",
        failures: Policy = "raise",
    ) -> None:
        self.inputs, self.outputs, self.arrays = inputs, outputs, arrays
        self.function, self.calls = function, []
        super().__init__(failures=failures)

    def give(self, *arrays: Any) -> Any:
        self.calls.append(arrays)
        return self.function(*arrays)


class EachBox(FunctionBox):
    """One row at a time."""

    def evaluate(self, *arrays: Any) -> Any:
        return self.give(*arrays)


class RowsBox(FunctionBox):
    """All rows at once."""

    def evaluate_rows(self, *arrays: Any) -> Any:
        return self.give(*arrays)


class Doubling(BlackBoxFunction):
    """A box with settings, at module level so that it can be pickled; forgets `super().__init__()`."""

    inputs = (STATE,)
    outputs = (STATE,)

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def evaluate_rows(self, state: Any) -> Any:
        return self.factor * state


KINDS = pytest.mark.parametrize(
    "kind, arrays",
    [(kind, arrays) for kind in (EachBox, RowsBox) for arrays in ("numpy", "torch")],
    ids=["evaluate-numpy", "evaluate-torch", "evaluate_rows-numpy", "evaluate_rows-torch"],
)


class ErrorCase(NamedTuple):
    """What goes wrong, the error it must be, and words that its message must hold."""

    name: str
    provoke: Callable[[], Any]
    error: type[BlackBoxError]
    words: list[str]

    def check(self) -> None:
        with pytest.raises(self.error) as caught:
            self.provoke()
        assert type(caught.value) is self.error
        for word in self.words:
            assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def error_table(cases: list[ErrorCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])
