"""What a black box declares: its specs, its method, its policy; checked, and refused by name."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar

from blackbox.checks import check_count
from blackbox.errors import ConfigurationError, DefinitionError
from blackbox.failures import POLICIES, Policy
from blackbox.ledger import Ledger
from blackbox.spec import ArraySpec, check_specs

Method = TypeVar("Method", bound=Callable[..., Any])


def placeholder(method: Method) -> Method:
    """Mark a method of the base class that a subclass is to give."""
    method.is_placeholder = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


class Definition(ABC):
    """What a black box declares, see `BlackBoxFunction`; `blackbox.running` runs its rows."""

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    arrays: Literal["numpy", "torch"] = "numpy"
    max_rows: int | None = None
    deterministic: bool = True
    settable: bool = True
    failures: Policy = "raise"
    isolates: bool = False

    def __init_subclass__(cls, abstract: bool = False, **keywords: Any) -> None:  # noqa: ANN401
        """Refuse an incomplete subclass where it is written; `abstract=True` for a common parent."""
        super().__init_subclass__(**keywords)
        for name in ("inputs", "outputs"):
            if name in cls.__dict__ and not hasattr(cls.__dict__[name], "__get__"):  # no property
                check_specs(cls.__name__, name, cls.__dict__[name])
        check_arrays(cls.__name__, cls.arrays)
        if not abstract:
            check_methods(cls)

    def __new__(cls, *_: Any, **__: Any) -> Self:  # noqa: ANN401
        """Give every instance its ledger, also where a subclass forgets `super().__init__()`."""
        box = super().__new__(cls)
        box._ledger = Ledger()
        return box

    _ledger: Ledger

    def __init__(self, *, failures: Policy | None = None) -> None:
        """Set the policy for failed rows; None keeps the class's own."""
        if failures is not None:
            self.failures = failures
        check_policy(self)

    @placeholder
    def evaluate(self, *arrays: Any) -> Any:  # noqa: ANN401
        """One row: arrays of the specs' shapes in, an array (or tuple) of the output specs' out."""
        raise TypeError(f"{type(self).__name__} gives evaluate_rows, not evaluate.")

    @placeholder
    def evaluate_rows(self, *arrays: Any) -> Any:  # noqa: ANN401
        """All rows: arrays `(rows, *spec.shape)` in, `(rows, *spec.shape)` for each output out."""
        raise TypeError(f"{type(self).__name__} gives evaluate, not evaluate_rows.")

    @property
    def ledger(self) -> Ledger:
        """The counts of this box; a wrapper returns its inner box's, so a stack has one ledger."""
        return self._ledger

    def __repr__(self) -> str:
        """The class's name; boxes with settings show them."""
        return type(self).__name__


def gives(cls: type, method: str) -> bool:
    """Whether a class has a method of its own, not the base's placeholder."""
    return not getattr(getattr(cls, method), "is_placeholder", False)


def _markable(box: Definition) -> bool:
    return any(spec.floating for spec in box.outputs)


def keeps(box: Definition) -> bool:
    """Whether a failed row is kept, as NaN."""
    # Integers have no NaN: a kept row would pass for an answer of 0.
    return box.failures == "keep" and _markable(box)


def mend(box: Definition) -> str:
    """How to go on with rows that fail: the end of a message."""
    if _markable(box):
        return "let such rows pass as NaN with failures='keep'."
    return "give an output a float dtype: integers cannot be marked NaN, so such rows cannot be kept."


def check_policy(box: Definition) -> None:
    """Refuse a policy for failed rows that does not exist."""
    if box.failures not in POLICIES:
        raise ConfigurationError(
            f"{box!r}, failures: expected 'raise' or 'keep', got {box.failures!r}. Choose one of the two."
        )


def check_complete(box: Definition) -> None:
    """Refuse an instance whose `__init__` left something out, at its first call."""
    for name in ("inputs", "outputs"):
        check_specs(type(box).__name__, name, getattr(box, name, None))
    check_arrays(type(box).__name__, box.arrays)
    if box.max_rows is not None:
        check_count(type(box).__name__, "max_rows", box.max_rows)
    check_policy(box)
    _check_given(type(box))


def check_arrays(owner: str, arrays: object) -> None:
    """Refuse a kind of array that does not exist."""
    if arrays not in ("numpy", "torch"):
        raise DefinitionError(f"{owner}.arrays: expected 'numpy' or 'torch', got {arrays!r}. Write one.")


def _check_given(cls: type[Definition]) -> None:
    if not (gives(cls, "evaluate") or gives(cls, "evaluate_rows")):
        raise DefinitionError(
            f"{cls.__name__}: expected a method evaluate (one row) or evaluate_rows (all rows), found "
            f"neither. Define one, or write class {cls.__name__}(..., abstract=True) for a common parent."
        )


def check_methods(cls: type[Definition]) -> None:
    """Refuse a class with no method, or with one that cannot take one array per input spec."""
    _check_given(cls)
    name = "evaluate_rows" if gives(cls, "evaluate_rows") else "evaluate"
    method, inputs = inspect.getattr_static(cls, name), getattr(cls, "inputs", None)
    if not (inspect.isfunction(method) and isinstance(inputs, tuple)):
        return  # a static or foreign method, or specs that only __init__ knows
    try:
        inspect.signature(method).bind(None, *inputs)
    except TypeError as error:
        expected = ", ".join(spec.name for spec in inputs)
        raise DefinitionError(
            f"{cls.__name__}.{name}: expected a method that takes one array for each input "
            f"(self, {expected}), but {error}. Name them in that order, or mend the specs."
        ) from None
