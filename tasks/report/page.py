"""`report.html` of a run: what came out, what it cost, how training went, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from tasks.problem import Problem
from tasks.progress import duration
from tasks.report import html_report, pictures
from tasks.report.findings import Findings
from tasks.report.html_report import Block, Details, Figure, Heading
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row

if TYPE_CHECKING:
    import pandas

NAME = "report.html"


def write(run: Run, problem: Problem | None) -> Path:
    """Write the report of a finished run.

    Args:
        run: Its folder.
        problem: What was trained, for its own part; None where its code is not at hand.
    """
    result = Result.read(run.path)
    blocks: list[Block] = [_table(result), *_curves(run, result)]
    if problem is not None:
        blocks += problem.report(Findings(run, result))
    blocks += [_ledger(result), Heading("The run"), Details("Settings", run.config)]
    blocks += [Details("Machine and versions", {**result.machine, **result.versions})]
    about = problem.about() if problem is not None else ""
    page = html_report.Page(
        title=result.task.replace("-", " ").capitalize(),
        lead=[about] if about else [],
        blocks=blocks,
        footer=f"{' '.join(result.command)} · started {result.started}, finished {result.finished}",
    )
    return html_report.write(run.path / NAME, page)


def frame(result: Result) -> pandas.DataFrame:
    """A line for each method and seed, with every figure."""
    import pandas

    lines = [
        {
            "method": row.method,
            "seed": row.seed,
            row.metric: row.value,
            "rows": row.rows,
            "queries": row.queries,
            "seconds": row.seconds,
            **row.extra,
        }
        for row in result.table
    ]
    return pandas.DataFrame(lines)


def shown(result: Result) -> pandas.DataFrame:
    """The table as it is shown: a line for each method, mean and standard deviation over seeds."""
    import pandas

    lines = []
    for method in dict.fromkeys(row.method for row in result.table):
        rows = [row for row in result.table if row.method == method]
        first = rows[0]
        unit = f" ({first.unit})" if first.unit else ""
        lines.append(
            {
                "method": method,
                f"{first.metric}{unit}": _spread(rows),
                "weights": f"{first.extra.get('weights', 0):,}",
                "rows": f"{round(fmean(row.rows for row in rows)):,}",
                "queries": f"{round(fmean(row.queries for row in rows)):,}",
                "time": duration(fmean(row.seconds for row in rows)),
            }
        )
    return pandas.DataFrame(lines)


def _spread(rows: Sequence[Row]) -> str:
    values = [row.value for row in rows if row.value is not None]
    if len(values) < len(rows):
        return "not finite"
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{fmean(values):.4g}{spread}"


def _table(result: Result) -> html_report.Table:
    table = shown(result)
    seeds = f"mean ± standard deviation of {len(result.seeds)} seeds" if len(result.seeds) > 1 else "one seed"
    return html_report.Table(
        list(table.columns), table.to_numpy().tolist(), caption=f"What came out: {seeds}."
    )


def _curves(run: Run, result: Result) -> Sequence[Block]:
    made, axes = pictures.figure(8.0, 3.2, columns=2)
    for place, (x, across) in enumerate((("rows", "box rows"), ("seconds", "seconds in steps"))):
        curves = {}
        for method in dict.fromkeys(row.method for row in result.table):
            stage = f"seed-{run.seeds[0]}/{method.lower().replace(' ', '-')}"
            lines = [line for line in run.metrics(stage) if "validation" in line]
            steps = {line["step"]: line.get("rows", 0) for line in run.metrics(stage) if "rows" in line}
            if lines:
                values = [line["validation"] for line in lines]
                where = [steps.get(line["step"], 0) if x == "rows" else line["seconds"] for line in lines]
                curves[method] = (where, values)
        pictures.against(
            axes[0, place], curves, x=across, y="validation", log_y=True, legend=0 if place else 3
        )
    path = pictures.save(made, run.path / "curves.png")
    return [Heading("Training"), Figure(path, alt="Validation against box rows and against time, by method")]


def _ledger(result: Result) -> html_report.Table:
    names = (
        "rows_run",
        "rows_cached",
        "rows_failed",
        "rows_retried",
        "rows_recovered",
        "seconds",
        "first_failure",
    )
    lines = [
        (
            row.method,
            row.seed,
            *(row.ledger.get(name) if row.ledger.get(name) is not None else "-" for name in names),
        )
        for row in result.table
    ]
    return html_report.Table(
        ("method", "seed", *(name.replace("_", " ") for name in names)),
        lines,
        caption="What the black boxes counted in training.",
    )
