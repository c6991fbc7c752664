"""What is done where trust is lost: `REMEDIES` in the order in which they are tried; none costs a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Improve = Callable[[], Sequence[str]]  # has something done, and says what, in words; empty for nothing


@dataclass(frozen=True)
class Means:
    """What can be done for no more rows.

    Attributes:
        excite: dithers inputs that were not, as values do not show the derivative by them.
        improve: has the tangents do more.
    """

    excite: Improve = tuple
    improve: Improve = tuple


@dataclass(frozen=True)
class Remedy:
    """Something to be done where trust is lost.

    Attributes:
        name: what it is.
        begin: begins it, and says in words what is done from now on; empty where nothing is left to do.
        cost: what it takes.
        taken_back: what must be shown for it to end.
    """

    name: str
    begin: Callable[[Means], Sequence[str]]
    cost: str
    taken_back: str


REMEDIES = (
    Remedy(
        "excitation",
        lambda means: means.excite(),
        "a small dither, and no rows",
        "values that identify the input by themselves, as far as `identified` can tell",
    ),
    Remedy(
        "tangents",
        lambda means: means.improve(),
        "time, and no rows",
        "nothing: what has been learned stays",
    ),
)


def begin(means: Means) -> tuple[str, ...]:
    """Begin the first remedy that applies: what is done from now on, in words; empty where none is left."""
    return next(filter(None, (tuple(remedy.begin(means)) for remedy in REMEDIES)), ())
