"""The report of a run, the same for every problem, with a part of the problem's own."""

from tasks.report.page import NAME, frame, shown, write

__all__ = ["NAME", "frame", "shown", "write"]
