"""The report of a run, the same for every problem: table, curves, ledger, settings, and the problem's own part."""

from tasks.report.page import NAME, frame, shown, write

__all__ = ["NAME", "frame", "shown", "write"]
