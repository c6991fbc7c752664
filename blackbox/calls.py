"""Two hooks of black boxes: one handles every call made in its context, the other runs the rows.

By the first, gradients learn which boxes an objective calls, and answer in their place where they have to.
The second comes later, when a call's inputs have been checked and its rows are to be run: a run remembers
answers with it. They are context variables: handlers of two threads, or of two asyncio tasks, do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from torch import Tensor

from blackbox.failures import Outcome

Intercept: TypeAlias = Callable[[Any, tuple[Any, ...]], Any]
"""A `BlackBoxFunction` and the arrays of its call -> what the call returns."""

Runner: TypeAlias = Callable[[Any, tuple[Tensor, ...]], Outcome]
"""A `BlackBoxFunction` and rows, checked and finite -> what its `run_rows` returns."""

_handler: ContextVar[Intercept | None] = ContextVar("blackbox.calls.handler", default=None)
_runner: ContextVar[Runner | None] = ContextVar("blackbox.calls.runner", default=None)


@contextmanager
def intercepted(handler: Intercept | None) -> Iterator[None]:
    """Let a handler answer every `box(*arrays)` of this block, in place of the box.

        def handler(box, arrays):
            print(box)
            return box.call(*arrays)

        with intercepted(handler):
            solver(velocity)

    The handler receives the calls of all boxes, and passes on those that do not interest it with the plain
    call, `box.call(*arrays)`. Inside that call no handler is at work, so a box that calls boxes, as wrappers
    do, is seen once, from outside. A block inside another takes its place until it ends. Threads that are
    started inside the block are not seen, nor is the one in which autograd goes back on a GPU.

    Args:
        handler: receives the box and the arrays of its call, and returns what the call returns; None lets
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


@contextmanager
def rows_run_by(runner: Runner | None) -> Iterator[None]:
    """Let a function run the rows of every call in this block that is not answered by a handler.

    Args:
        runner: receives a box and its rows in place of the box's `run_rows`, also of boxes that this one
            calls unless it opens a block with None; None lets boxes run their rows by themselves.
    """
    token = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(token)


def runner() -> Runner | None:
    """Return the function that runs rows in this context, None where boxes do."""
    return _runner.get()
