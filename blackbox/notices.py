"""Warnings at the user's line, and `Notices`: each notice is given once."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from types import FrameType

# Of whose code no line is the user's: the project's, and what calls it back.
INSIDE = frozenset({"blackbox", "simulators", "zo", "tasks", "torch", "contextlib", "functools"})


@dataclass(frozen=True)
class Notice:
    """A warning that has not been given yet.

    Attributes:
        name: the name of its subject; `Notices` gives one warning for each name.
        words: the sentences.
        category: the class of the warning.
    """

    name: str
    words: str
    category: type[Warning]


class Notices:
    """Gives each warning once.

    Attributes:
        said: the names of notices that were given, or that another one has made needless.
    """

    def __init__(self) -> None:
        self.said = set[str]()

    def say(self, *notices: Notice | None) -> None:
        """Give warnings whose names are new; None is no warning.

        Warns:
            Warning: each notice, with its category, at the user's line.
        """
        for notice in notices:
            if notice is not None:
                self.once(notice.name, notice.words, notice.category)

    def once(self, name: str, words: str, category: type[Warning] = RuntimeWarning) -> None:
        """Give a warning if its name is new.

        Warns:
            Warning: the warning, with that category, at the user's line.
        """
        if self.first(name):
            warn(words, category)

    def first(self, name: str) -> bool:
        """Say whether a name is new; from now on it is not."""
        new = name not in self.said
        self.said.add(name)
        return new

    def settle(self, *names: str) -> None:
        """Say nothing of these from now on: another warning says more of them."""
        self.said.update(names)

    def renew(self, *names: str) -> None:
        """Say these again when they come again: in between they were over."""
        self.said.difference_update(names)


def warn(words: str, category: type[Warning]) -> None:
    """Warn at the innermost line outside of this project: the user's own.

    Args:
        words: the sentences.
        category: the class of the warning.

    Warns:
        Warning: the warning, with that category.
    """
    frame = _of_user(sys._getframe(1))
    warnings.warn_explicit(
        words,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _of_user(frame: FrameType) -> FrameType:
    """The innermost frame of code that is not `INSIDE`; the outermost where all of it is."""
    while frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE and frame.f_back is not None:
        frame = frame.f_back
    return frame
