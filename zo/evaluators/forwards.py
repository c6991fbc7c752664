"""Forwards of modules, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

Forward: TypeAlias = Callable[..., Any]


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Modules have other forwards for the duration of the block; hooks still run."""
    old_forwards: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module, forward in forwards.items():
            # someone may have replaced it before us
            old_forwards.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield
    finally:
        for module, earlier in old_forwards:
            if earlier is None:
                module.__dict__.pop("forward", None)  # the class's own shows again
            else:
                module.forward = earlier
