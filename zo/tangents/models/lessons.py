"""`listening`: hear how far the first lesson of a model is, which may take longer than many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Hear = Callable[[int, int], None]
"""Steps of learning that are done, and how many there are at most: the two are equal at the end."""

_hear: ContextVar[Hear | None] = ContextVar("zo.tangents.models.lessons.hear", default=None)


@contextmanager
def listening(hear: Hear) -> Iterator[None]:
    """Have first lessons in this block call `hear`: at the beginning, now and then, and at the end.

    Nothing that a lesson does depends on it.
    """
    token = _hear.set(hear)
    try:
        yield
    finally:
        _hear.reset(token)


def report(done: int, most: int) -> None:
    """Report how far a first lesson is, where somebody listens."""
    hear = _hear.get()
    if hear is not None:
        hear(done, most)
