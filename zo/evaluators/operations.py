"""`Operations`: a block in which each operation of torch is looked at, and may give another result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_UNMARKED = {"random_", "binomial", "_sample_dirichlet"}  # draws that older versions do not mark as such


def draws(operation: Any) -> bool:
    """Say whether an operation draws at random."""
    marked = torch.Tag.nondeterministic_seeded in operation.tags
    return marked or operation.overloadpacket.__name__ in _UNMARKED


class Operations(TorchDispatchMode, ABC):
    """A mode of torch whose subclass looks at what operations give while its block runs."""

    @abstractmethod
    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Look at the result of an operation.

        Args:
            operation: The operation, as torch dispatches it.
            arguments: Its arguments, by place and by name.
            result: Its result.

        Returns:
            The result for the caller: this one, or another in its place.
        """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and look at what it gave."""
        named = kwargs or {}
        return self.gave(func, (args, named), self.run(func, args, named))

    def run(self, operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run the operation; a subclass may run it otherwise."""
        return operation(*arguments, **named)
