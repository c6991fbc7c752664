"""The report of a run, the same for every problem.

Names are imported when they are first used: matplotlib takes a second, and help and refusals draw nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.report.findings import Curve, Findings, frame, latex, markdown, shown, untouched
    from tasks.report.html_report import Details, Figure, Heading, Paragraph, Table
    from tasks.report.page import NAME, write

_NAMES = {  # by module
    "findings": ("Curve", "Findings", "frame", "latex", "markdown", "shown", "untouched"),
    "html_report": ("Details", "Figure", "Heading", "Paragraph", "Table"),
    "page": ("NAME", "write"),
}

__all__ = [
    "NAME",
    "Curve",
    "Details",
    "Figure",
    "Findings",
    "Heading",
    "Paragraph",
    "Table",
    "frame",
    "latex",
    "markdown",
    "shown",
    "untouched",
    "write",
]


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"tasks.report.{module}"), name)
    raise AttributeError(f"module 'tasks.report' has no attribute {name!r}")
