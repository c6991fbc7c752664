"""A run's tables: outcome, further figures, counts and failures; as Markdown and LaTeX too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from blackbox.terminal import plain
from blackbox.words import duration
from tasks.folder import atomic
from tasks.folder.result import NO_FIGURES, TEST, VALIDATION, Result
from tasks.report.method_scores import scores, with_spread

if TYPE_CHECKING:
    import pandas

IN_TEST = "failed or skipped in test (box rows)"
COUNTS = {
    "rows_run": "rows run",
    "rows_cached": "cached",
    "rows_failed": "failed",
    "rows_skipped": "skipped",
    "rows_retried": "run again",
    "rows_recovered": "recovered",
}


def frame(result: Result) -> pandas.DataFrame:
    """A line for each method and seed, with every figure."""
    import pandas

    return pandas.DataFrame(
        {
            "method": row.method,
            "seed": row.seed,
            row.metric or "figure": row.value,
            **({} if row.standard_error is None else {"standard error": row.standard_error}),
            **({} if row.test_rows is None else {"test rows": row.test_rows}),
            "rows": row.rows,
            "queries": row.queries,
            "seconds": row.seconds,
            **row.extra,
            **{f"failed rows of {name}": count for name, count in row.failed.items()},
        }
        for row in result.table
    )


def shown(result: Result) -> pandas.DataFrame:
    """The table as it is shown: a line for each method; `method_scores.meaning` says what ± is."""
    import pandas

    lines, every = [], scores(result)
    left_out = any(score.left_out for score in every)
    errors = len(result.seeds) > 1 and any(score.standard_error is not None for score in every)
    for score in every:
        first, error = score.rows[0], score.standard_error
        none = "-" if score.refused or score.under_way else ""  # there was no network to count or to test
        lines.append(
            {
                "method": score.method,
                labelled(first.metric or "figure", {first.metric: first.unit}): score.cell,
                **({"standard error": "-" if error is None else f"{error:.2g}"} if errors else {}),
                **({"rows left out": none or f"{score.left_out:,}"} if left_out else {}),
                "weights": none or f"{first.extra.get('weights') or 0:,}",
                "rows": f"{round(score.box_rows):,}",
                "queries": f"{round(fmean(row.queries for row in score.rows)):,}",
                "time": _time(fmean(row.seconds for row in score.rows)),
            }
        )
    return pandas.DataFrame(lines).fillna("-")


def further(result: Result) -> pandas.DataFrame:
    """The figures of `evaluate` after the first and those of methods, a line for each that has any.

    Rows that failed have a column where a figure leaves out other ones than the first figure does.
    """
    import pandas

    every = scores(result)
    failed = [
        name
        for name in dict.fromkeys(name for row in result.table for name in row.failed)
        if name not in (VALIDATION, TEST) and any(score.failed(name) != score.left_out for score in every)
    ]
    lines = []
    for score in every:
        units = score.rows[0].units
        names = dict.fromkeys(name for row in score.rows for name in row.extra if name not in NO_FIGURES)
        line = {labelled(name, units): _shown([row.extra.get(name) for row in score.rows]) for name in names}
        line |= {f"failed rows of {name}": f"{score.failed(name):,}" for name in failed}
        if line:
            lines.append({"method": score.method, **line})
    return pandas.DataFrame(lines).fillna("-")


def counts(result: Result) -> pandas.DataFrame:
    """Tabulate the black boxes' counts in training, summed over seeds, a line for each method.

    Columns without any count are left out, but for the rows that were run and those that failed.
    """
    import pandas

    def total(numbers: Sequence[object]) -> int:
        return sum(int(number or 0) for number in numbers)  # type: ignore[call-overload]

    table = pandas.DataFrame(
        {
            "method": score.method,
            **{label: total([row.ledger.get(name) for row in score.rows]) for name, label in COUNTS.items()},
            "dropped queries": total([row.extra.get("dropped queries") for row in score.rows]),
            "failed in validation": score.failed(VALIDATION),
            IN_TEST: score.failed(TEST),
            "time in the box": _time(sum(row.ledger.get("seconds") or 0.0 for row in score.rows)),
        }
        for score in scores(result)
    )
    return table.loc[:, [name in ("rows run", "failed") or bool(table[name].any()) for name in table]]


def failures(result: Result) -> pandas.DataFrame:
    """Why rows failed, a line for each method that had any: how often by cause, and the first in words."""
    import pandas

    lines = []
    for score in scores(result):
        causes: Counter[str] = Counter()
        for row in score.rows:
            causes.update(row.ledger.get("causes") or {})
        first = next((row for row in score.rows if row.ledger.get("first_failure")), None)
        if causes or first:
            seed = f"seed {first.seed}: " if first and len(score.rows) > 1 else ""
            lines.append(
                {
                    "method": score.method,
                    "causes": ", ".join(f"{cause} ({count:,})" for cause, count in causes.most_common())
                    or "-",
                    "the first": f"{seed}{first.ledger['first_failure']}" if first else "-",
                }
            )
    return pandas.DataFrame(lines)


def for_papers(result: Result) -> pandas.DataFrame:
    """The table and the further figures in one, a line for each method."""
    more = further(result)
    if more.empty:
        return shown(result)
    return shown(result).merge(more, on="method", how="left", suffixes=("", " (further)")).fillna("-")


def write(folder: Path, table: pandas.DataFrame, notes: Sequence[str]) -> None:
    """Write a frame of text for papers, as `table.md`, with notes below, and as `table.tex`."""
    atomic.write_bytes(folder / "table.md", markdown(table, notes).encode())
    atomic.write_bytes(folder / "table.tex", latex(table).encode())


def markdown(frame: pandas.DataFrame, notes: Sequence[str] = ()) -> str:
    """A frame of text as a Markdown table, the first column left and the others right; then notes on it."""
    rule = ["---"] + ["---:"] * (len(frame.columns) - 1)
    lines = [list(frame.columns), *frame.to_numpy().tolist()]
    head, *body = [" | ".join(_as_markdown(str(cell)) for cell in line) for line in lines]
    table = "".join(f"| {line} |\n" for line in (head, " | ".join(rule), *body))
    return table + "".join(f"\n{_as_markdown(note)}\n" for note in notes)


def _as_markdown(text: str) -> str:
    """A text in a cell of Markdown that begins no HTML, link, picture or further cell."""
    return re.sub(r"([\\`\[\]|])", r"\\\1", escape(_on_a_line(text), quote=False))


def _on_a_line(text: object) -> str:
    """A text without ends of lines, and without what acts on who shows it."""
    return " ".join(plain(str(text)).split())


def latex(frame: pandas.DataFrame) -> str:
    """A frame of text as a LaTeX tabular with the rules of `booktabs`."""
    frame = frame.map(_on_a_line).rename(columns=_on_a_line)
    columns = "l" + "r" * (len(frame.columns) - 1)
    return frame.to_latex(index=False, escape=True, column_format=columns).replace("±", r"$\pm$")


def labelled(name: str, units: Mapping[str, str]) -> str:
    """A figure's name with its unit, for a table's head or an axis: "drag (N)"."""
    return f"{name} ({units[name]})" if units.get(name) else name


def _time(seconds: float) -> str:
    """0.42 s, 3.1 s, 42 s, 3 min 10 s."""
    return f"{seconds:.2g} s" if seconds < 9.5 else duration(seconds)


def _shown(values: Sequence[float | int | str | None]) -> str:
    """A further figure over seeds."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values) or any(isinstance(value, bool) for value in values):
        return ", ".join(dict.fromkeys("-" if value is None else str(value) for value in values))
    if all(number.is_integer() for number in numbers) and len(set(numbers)) == 1:
        return f"{numbers[0]:,.0f}"
    return with_spread(numbers)
