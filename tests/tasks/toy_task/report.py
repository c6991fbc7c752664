"""Report of the toy task."""

from pathlib import Path

from tasks.report.html_report import Page, Table, write
from tasks.runs.folder import Run
from tasks.runs.result import Result


def _table(run: Run) -> Table:
    result = Result.read(run.path)
    return Table(["method", "seed", "MAE"], [(row.method, row.seed, row.value) for row in result.table])


def write_report(run: Run) -> Path:
    return write(run.path / "report.html", Page("Toy", ["A line was fitted."], [_table(run)]))


def summary(run: Run) -> str:
    return "\n".join(f"{method} {seed} {value:.4f}" for method, seed, value in _table(run).rows)
