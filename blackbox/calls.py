"""One hook for calls of black boxes: a handler that is given every call made in its context.

Gradients see through it which boxes an objective calls, and answer in their place where they have to. It is a
context variable: handlers of two threads, or of two asyncio tasks, do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

Intercept: TypeAlias = Callable[[Any, tuple[Any, ...]], Any]
"""A `BlackBoxFunction` and the arrays of its call -> what the call returns."""

_handler: ContextVar[Intercept | None] = ContextVar("blackbox.calls.handler", default=None)


@contextmanager
def intercepted(handler: Intercept | None) -> Iterator[None]:
    """Let a handler answer every `box(*arrays)` of this block, in place of the box.

        def handler(box, arrays):
            print(box)
            return box.call(*arrays)

        with intercepted(handler):
            solver(velocity)

    The handler is given all boxes; those that it has no interest in it calls by `box.call(*arrays)`, which
    is the plain call. Inside that call no handler is at work, so a box that calls boxes, as wrappers do, is
    seen once, from outside. A block inside another takes its place until it ends. Threads that are started
    inside the block are not seen, nor is the one in which autograd goes back on a GPU.

    Args:
        handler: is given the box and the arrays of its call, and returns what the call returns; None lets
            all calls through.
    """
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


def current() -> Intercept | None:
    """The handler of this context, None where there is none."""
    return _handler.get()
