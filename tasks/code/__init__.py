"""Code that a text names: parsed once, and executed only where it is trusted.

Names are imported when they are first used: those on the command line (`names`) need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.code.settings import Code, NamesCode, find, make

__all__ = ["Code", "NamesCode", "find", "make"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("tasks.code.settings"), name)
    raise AttributeError(f"module 'tasks.code' has no attribute {name!r}")
