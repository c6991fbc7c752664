"""`BoxGroup`: several black boxes that one object calls, and that are named by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Self

from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction


class BoxGroup(ABC):
    """An object that calls black boxes of its own, such as a program that asks in several places.

    Where boxes are named for a gradient, the group may stand in their place.

    Attributes:
        checked_by: where the function is that checks the whole of it, as `module:function`; None without one.
    """

    checked_by: ClassVar[str | None] = None

    @property
    @abstractmethod
    def named_boxes(self) -> Mapping[str, BlackBoxFunction]:
        """The boxes by name."""

    @abstractmethod
    def wrapped(self, wrap: Callable[[BlackBoxFunction], BlackBoxFunction]) -> Self:
        """The same group, which calls wrappers around its boxes."""

    def check(self, out: str | Path | None = None, *, seed: int = 0) -> int:
        """Check the whole of it for a person or for CI, as `blackbox.conformance.command` does a black box.

        Args:
            out: a file for the report as JSON; "-" writes it to standard output in place of the table.
            seed: the seed of all draws.

        Returns:
            The exit status: 0 if there are no faults, 1 if there are.

        Raises:
            ConfigurationError: there is no such check.
        """
        if self.checked_by is None:
            raise ConfigurationError(
                f"{type(self).__name__}: expected a black box to check, got a group of "
                f"{', '.join(self.named_boxes)} that has no check as a whole. Check its boxes, one by one."
            )
        module, _, name = self.checked_by.partition(":")
        return getattr(import_module(module), name)(self, out, seed=seed)
