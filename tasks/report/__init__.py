"""The report of a run, the same for every problem: figures, curves, ledger, settings, the problem's part."""

from tasks.report.findings import frame, shown
from tasks.report.page import NAME, write

__all__ = ["NAME", "frame", "shown", "write"]
