"""What makes a black box complete: its specs, its method, its policy; checked, and refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from blackbox.checks import check_count
from blackbox.errors import ConfigurationError, DefinitionError
from blackbox.failures import POLICIES
from blackbox.spec import check_specs

if TYPE_CHECKING:
    from blackbox.function import BlackBoxFunction

Method = TypeVar("Method", bound=Callable[..., Any])


def placeholder(method: Method) -> Method:
    """Mark a method of the base class that a subclass is to give."""
    method.is_placeholder = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


def gives(cls: type, method: str) -> bool:
    """Whether a class has a method of its own, not the base's placeholder."""
    return not getattr(getattr(cls, method), "is_placeholder", False)


def _markable(box: BlackBoxFunction) -> bool:
    return any(spec.floating for spec in box.outputs)


def keeps(box: BlackBoxFunction) -> bool:
    """Whether a failed row is kept, as NaN."""
    # Integers have no NaN: a kept row would pass for an answer of 0.
    return box.failures == "keep" and _markable(box)


def mend(box: BlackBoxFunction) -> str:
    """How to go on with rows that fail: the end of a message."""
    if _markable(box):
        return "let such rows pass as NaN with failures='keep'."
    return "give an output a float dtype: integers cannot be marked NaN, so such rows cannot be kept."


def check_policy(box: BlackBoxFunction) -> None:
    """Refuse a policy for failed rows that does not exist."""
    if box.failures not in POLICIES:
        raise ConfigurationError(
            f"{box!r}, failures: expected 'raise' or 'keep', got {box.failures!r}. Choose one of the two."
        )


def check_complete(box: BlackBoxFunction) -> None:
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


def _check_given(cls: type[BlackBoxFunction]) -> None:
    if not (gives(cls, "evaluate") or gives(cls, "evaluate_rows")):
        raise DefinitionError(
            f"{cls.__name__}: expected a method evaluate (one row) or evaluate_rows (all rows), found "
            f"neither. Define one, or write class {cls.__name__}(..., abstract=True) for a common parent."
        )


def check_methods(cls: type[BlackBoxFunction]) -> None:
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
