"""`BoxGroup`: several black boxes that one object calls, and that are named by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from blackbox.function import BlackBoxFunction


class BoxGroup(ABC):
    """An object that calls black boxes of its own, such as a program that asks in several places.

    Where boxes are named for a gradient, the group may stand in their place.
    """

    @property
    @abstractmethod
    def named_boxes(self) -> Mapping[str, BlackBoxFunction]:
        """The boxes by name."""

    @abstractmethod
    def wrapped(self, wrap: Callable[[BlackBoxFunction], BlackBoxFunction]) -> Self:
        """The same group, which calls wrappers around its boxes."""

    @abstractmethod
    def check(self, out: str | Path | None = None, *, seed: int = 0) -> int:
        """Check the whole of it for a person or for CI, as `blackbox.conformance.command` does a black box.

        Args:
            out: a file for the report as JSON; "-" writes it to standard output in place of the table.
            seed: the seed of all draws.

        Returns:
            The exit status: 0 if there are no faults, 1 if there are.
        """
