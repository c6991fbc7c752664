"""The report of a run, the same for every problem: figures, curves, ledger, settings, the problem's part.

Names are imported when they are first used: matplotlib takes a second, and help and refusals draw nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.report.findings import frame, shown, untouched
    from tasks.report.page import NAME, write

__all__ = ["NAME", "frame", "shown", "untouched", "write"]

_PLACES = {
    "NAME": "page",
    "frame": "findings",
    "shown": "findings",
    "untouched": "findings",
    "write": "page",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tasks.report' has no attribute {name!r}")
    return getattr(import_module(f"tasks.report.{_PLACES[name]}"), name)
