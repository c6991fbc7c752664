"""`BoxGroup`: several black boxes that one object calls, and that are named by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
