"""Of the many cases of a test some stay quick; the others are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(every: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, of which the first and every so-many-th after it is quick."""
    return [case if place % every == 0 else slow(case) for place, case in enumerate(cases)]


def first(count: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, of which so many at the beginning are quick."""
    return [case if place < count else slow(case) for place, case in enumerate(cases)]


def slow(case: Any) -> Any:
    """A case of a parametrized test, marked as slow; what it is marked with already stays.

    A tuple is taken for several values: one that is a single value comes as a `pytest.param`.
    """
    if isinstance(case, type(pytest.param())):
        return pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.slow])
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
