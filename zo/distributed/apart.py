"""Whether this process is at work on a share of its own, or does what all processes of a group do alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_apart = ContextVar("apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """A block in which processes evaluate different things, so that no box may wait for the others."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def is_apart() -> bool:
    """Whether such a block is running."""
    return _apart.get()
