"""Questions about a box in its stack of wrappers: its parts, its count of rows, and rows run together."""

from __future__ import annotations

from blackbox import BlackBoxFunction, Cached, Parallel
from blackbox.function import defines
from blackbox.wrappers.wrapper import Wrapper
from zo.execution import SharedRows


def stack(box: BlackBoxFunction) -> list[BlackBoxFunction]:
    """The wrappers of a box from the outside in, and the box itself."""
    parts = [box]
    while isinstance(parts[-1], Wrapper):
        parts.append(parts[-1].box)
    return parts


def evaluated(box: BlackBoxFunction) -> BlackBoxFunction:
    """The box whose ledger has what this process evaluates; the sum over processes is what one would."""
    return box.box if isinstance(box, SharedRows) else box


def counted_late(box: BlackBoxFunction) -> bool:
    """Say whether a box's rows are counted when they are back, by workers or itself, not before they run."""
    parts = stack(evaluated(box))
    itself = type(parts[-1]).run_rows is not BlackBoxFunction.run_rows
    return itself or any(isinstance(part, Parallel) for part in parts)


def divisible(box: BlackBoxFunction) -> tuple[int | None, bool]:
    """Rows that a box runs together whatever the call, and whether it tells of them as they come back.

    Parts of that many rows have a whole's bits. None for all rows of a call.
    """
    while isinstance(box, Wrapper):
        if isinstance(box, Parallel):
            return box.block, True
        if not box.transparent:
            return None, False
        box = box.box
    return (box.max_rows if defines(type(box), "evaluate_rows") else 1), False


def behind_caches(box: BlackBoxFunction) -> BlackBoxFunction:
    """Return the box that a cache would ask, where it answers as before; the box itself without a cache."""
    inner = box
    while isinstance(inner, Wrapper) and (inner.transparent or isinstance(inner, Cached)):
        if isinstance(inner, Cached):
            return behind_caches(inner.box)
        inner = inner.box
    return box
