"""Report of the task with queries."""

from pathlib import Path

from tasks.report.html_report import Page, Table, write
from tasks.runs.folder import Run
from tasks.runs.result import Result


def _table(run: Run) -> Table:
    result = Result.read(run.path)
    return Table(["method", "loss"], [(row.method, row.value) for row in result.table])


def write_report(run: Run) -> Path:
    return write(run.path / "report.html", Page("Shared", ["A network was fitted."], [_table(run)]))


def summary(run: Run) -> str:
    return "\n".join(f"{method} {loss:.4f}" for method, loss in _table(run).rows)
