"""What came out of a run, for its report: rows by method, curves, fields of evaluations; and their tables."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from blackbox.terminal import plain
from blackbox.words import duration
from tasks.folder import reading
from tasks.folder.result import NO_FIGURES, NOT_APPLICABLE, REJECTED, TEST, VALIDATION, Result, Row
from tasks.folder.run import Run, stage_name
from tasks.folder.warning_notes import without_numbers

if TYPE_CHECKING:
    import pandas

    from tasks.report.html_report import Block

IN_TEST = "failed or skipped in test (box rows)"


class Reported(Protocol):
    """What the report asks of a problem; `tasks.Problem` says what each is."""

    config: Any
    looks: ClassVar[Mapping[str, tuple[str, str]]]
    queries: ClassVar[str]
    dimensions: ClassVar[Mapping[str, Sequence[str]]]

    @classmethod
    def about(cls) -> str:
        """What it is."""
        ...

    @classmethod
    def says_which_is_better(cls) -> bool:
        """Whether it says which way its first figure is better."""
        ...

    @classmethod
    def has_report(cls) -> bool:
        """Whether it gives `report`, and not pictures alone."""
        ...

    def report(self, findings: Findings, /) -> Sequence[Block]:
        """Its own part."""
        ...

    def coordinates(self) -> Mapping[str, Any]:
        """Values along axes."""
        ...


@dataclass(frozen=True)
class Curve:
    """A figure over the training of one method with one seed: arrays of one length.

    Attributes:
        steps: Optimiser steps done.
        rows: Box rows run in them; zeros where no box was counted.
        seconds: Time in them.
        values: The figure; NaN where it was not finite.
    """

    steps: np.ndarray
    rows: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    def smooth(self, points: int = 200) -> Curve:
        """Means of neighbours that leave about so many points, for what differs from step to step."""
        width = max(1, len(self.steps) // points)
        ends = np.arange(len(self.steps), 0, -width)[::-1]
        parts = [self.values[max(0, end - width) : end] for end in ends]
        means = np.array(
            [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts]
        )
        at = ends - 1
        return Curve(self.steps[at], self.rows[at], self.seconds[at], means)


@dataclass(frozen=True)
class Findings:
    """What came out of a run.

    Attributes:
        run: Its folder; pictures go there.
        result: The table.
    """

    run: Run
    result: Result

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the table."""
        return self.result.seeds

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(dict.fromkeys(row.method for row in self.result.table))

    @cached_property
    def fields(self) -> Mapping[int, Mapping[str, Mapping[str, Any]]]:
        """The arrays that `evaluate` gave, by seed, method and name."""
        from tasks.folder import checkpoint

        fields: dict[int, dict[str, dict[str, np.ndarray]]] = {seed: {} for seed in self.seeds}
        for row in self.result.table:
            if NOT_APPLICABLE not in row.extra:
                kept = checkpoint.load_evaluation(self.run.path, stage_name(row.seed, row.method))["fields"]
                fields[row.seed][row.method] = {name: tensor.numpy() for name, tensor in kept.items()}
        return fields

    @cached_property
    def lines(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The lines of `metrics.jsonl` by stage, read once."""
        lines: dict[str, list[Mapping[str, Any]]] = {}
        for line in self.run.metrics():
            lines.setdefault(line["stage"], []).append(line)
        return lines

    def curves(self, name: str) -> dict[str, dict[int, Curve]]:
        """A figure of the metrics over training, by method and seed; methods without it are left out."""
        curves: dict[str, dict[int, Curve]] = {}
        for method in self.methods:
            for seed in self.seeds:
                stage = self.lines.get(stage_name(seed, method), ())
                rows = {line["step"]: line["rows"] for line in stage if _is_number(line.get("rows"))}
                at = [line for line in stage if _is_number(line.get(name))]
                if at:
                    curves.setdefault(method, {})[seed] = Curve(
                        np.array([line["step"] for line in at]),
                        np.array([rows.get(line["step"], 0) for line in at], dtype=float),
                        np.array([_number(line.get("seconds")) for line in at], dtype=float),
                        np.array([line[name] for line in at], dtype=float),
                    )
        return curves

    def gaps(self) -> list[str]:
        """In a sentence for each training: the steps of which `metrics.jsonl` has no line."""
        lines = []
        for row in self.result.table:
            stage, steps = stage_name(row.seed, row.method), row.extra.get("steps")
            if isinstance(steps, int) and steps:
                missing = reading.gaps(self.lines.get(stage, ()), steps)
                if missing:
                    lines.append(
                        f"metrics.jsonl has no line of {missing} of {stage}: its curves are without."
                    )
        return lines


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and _is_number(value) else math.nan


@dataclass(frozen=True)
class Score:
    """A method's first figure over the seeds.

    Attributes:
        rows: A row of the result for each seed.
    """

    rows: Sequence[Row]

    @property
    def method(self) -> str:
        """Its name."""
        return self.rows[0].method

    @property
    def role(self) -> str:
        """The shared method whose part it has in the report's first sentences; its own name for no other."""
        return self.rows[0].role or self.method

    @property
    def refused(self) -> str:
        """Why the method has nothing to go by in this problem; "" where it has."""
        return next((str(row.extra[NOT_APPLICABLE]) for row in self.rows if NOT_APPLICABLE in row.extra), "")

    @property
    def metric(self) -> str:
        """What the figure is."""
        return self.rows[0].metric

    @property
    def values(self) -> dict[int, float]:
        """By seed; NaN where there is no finite figure."""
        return {row.seed: math.nan if row.value is None else row.value for row in self.rows}

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where one has no finite figure: a mean over the rest would flatter."""
        return fmean(self.values.values())

    @property
    def loss(self) -> float:
        """The mean, with a sign by which lower is better."""
        return -self.mean if self.rows[0].higher_is_better else self.mean

    @property
    def box_rows(self) -> float:
        """Box rows that training took, the mean over seeds."""
        return fmean(row.rows for row in self.rows)

    @property
    def left_out(self) -> int:
        """Rows that failed and are not in the figure, in all seeds together."""
        return self.failed(self.metric)

    def failed(self, name: str) -> int:
        """Rows of a figure, of validation or of the test that failed, in all seeds together."""
        return sum(row.failed.get(name, 0) for row in self.rows)

    def __str__(self) -> str:
        """As it is shown: "0.0031 ± 0.0015 m/s", or that the method is not applicable."""
        if self.refused:
            return NOT_APPLICABLE
        unit = self.rows[0].unit
        return with_spread(list(self.values.values())) + (f" {unit}" if unit else "")


def scores(result: Result) -> list[Score]:
    """Of each method, in the order of the table."""
    methods = dict.fromkeys(row.method for row in result.table)
    return [Score([row for row in result.table if row.method == method]) for method in methods]


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
            **{f"failed rows of {name}": count for name, count in row.failed.items()},
        }
        for row in result.table
    ]
    return pandas.DataFrame(lines)


def shown(result: Result) -> pandas.DataFrame:
    """The table as it is shown: a line for each method, mean ± standard deviation over seeds."""
    import pandas

    lines, every = [], scores(result)
    left_out = any(score.left_out for score in every)
    for score in every:
        first = score.rows[0]
        none = "-" if score.refused else ""  # there was no network to count or to test
        lines.append(
            {
                "method": score.method,
                labelled(first.metric or "figure", {first.metric: first.unit}): NOT_APPLICABLE
                if score.refused
                else with_spread(list(score.values.values())),
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
    others = {
        name: f"failed rows of {name}"
        for name in dict.fromkeys(name for row in result.table for name in row.failed)
        if name not in (VALIDATION, TEST) and any(score.failed(name) != score.left_out for score in every)
    }
    lines = []
    for score in every:
        units = score.rows[0].units
        names = dict.fromkeys(name for row in score.rows for name in row.extra if name not in NO_FIGURES)
        line = {labelled(name, units): _shown([row.extra.get(name) for row in score.rows]) for name in names}
        line |= {shown: f"{score.failed(name):,}" for name, shown in others.items()}
        if line:
            lines.append({"method": score.method, **line})
    return pandas.DataFrame(lines).fillna("-")


def untouched(result: Result) -> list[str]:
    """A sentence for each method of which validation chose the weights that it started from, and why."""
    lines = []
    for score in scores(result):
        rows = [row for row in score.rows if row.extra.get("steps") and row.extra.get("chosen step") == 0]
        if not rows:
            continue
        seeds = "" if len(score.rows) == 1 else f" (seed {', '.join(str(row.seed) for row in rows)})"
        rejected = sum(int(row.extra.get(REJECTED) or 0) for row in rows)
        why = "no validation after the first was better"
        if rejected:
            why += f", and in {rejected:,} of them too many rows failed to choose weights by"
        lines.append(f"{score.method} has the weights that it started from{seeds}: {why}.")
    return lines


def warned_of(result: Result) -> dict[tuple[str, str], str]:
    """What the run has warned of, by class and words without numbers, in the words of the first time."""
    texts: dict[tuple[str, str], str] = {}
    for warning in result.warnings:
        texts.setdefault((warning.kind, without_numbers(warning.text)), warning.text)
    return texts


def counts(result: Result) -> pandas.DataFrame:
    """What the black boxes counted in training, the sum over seeds, a line for each method.

    Columns without any count are left out, but for the rows that were run and those that failed.
    """
    import pandas

    names = {
        "rows_run": "rows run",
        "rows_cached": "cached",
        "rows_failed": "failed",
        "rows_skipped": "skipped",
        "rows_retried": "run again",
        "rows_recovered": "recovered",
    }
    lines = []
    for score in scores(result):
        sums = {shown: sum(row.ledger.get(name) or 0 for row in score.rows) for name, shown in names.items()}
        seconds = sum(row.ledger.get("seconds") or 0.0 for row in score.rows)
        lines.append(
            {
                "method": score.method,
                **sums,
                "dropped queries": sum(int(row.extra.get("dropped queries") or 0) for row in score.rows),
                "failed in validation": score.failed(VALIDATION),
                IN_TEST: score.failed(TEST),
                "time in the box": _time(seconds),
            }
        )
    always = ("method", "rows run", "failed")
    kept = [name for name in lines[0] if name in always or any(line[name] for line in lines)] if lines else []
    return pandas.DataFrame(lines, columns=kept)


def failures(result: Result) -> pandas.DataFrame:
    """Why rows failed, a line for each method that had any: how often by cause, and the first in words."""
    import pandas

    lines = []
    for score in scores(result):
        causes: Counter[str] = Counter()
        for row in score.rows:
            causes.update(row.ledger.get("causes") or {})
        first = [(row.seed, row.ledger.get("first_failure")) for row in score.rows]
        counts = [
            f"seed {seed}: {sentence}" if len(first) > 1 else f"{sentence}"
            for seed, sentence in first
            if sentence
        ]
        if causes or counts:
            lines.append(
                {
                    "method": score.method,
                    "causes": ", ".join(f"{cause} ({count:,})" for cause, count in causes.most_common())
                    or "-",
                    "the first": counts[0] if counts else "-",
                }
            )
    return pandas.DataFrame(lines)


def for_papers(result: Result) -> pandas.DataFrame:
    """The table and the further figures in one, a line for each method."""
    more = further(result)
    if more.empty:
        return shown(result)
    return shown(result).merge(more, on="method", how="left", suffixes=("", " (further)")).fillna("-")


def markdown(frame: pandas.DataFrame, notes: Sequence[str] = ()) -> str:
    """A frame of text as a Markdown table, the first column left and the others right; then notes on it."""
    rule = ["---"] + ["---:"] * (len(frame.columns) - 1)
    lines = [list(frame.columns), *frame.to_numpy().tolist()]
    head, *body = [" | ".join(_as_markdown(str(cell)) for cell in line) for line in lines]
    table = "".join(f"| {line} |\n" for line in (head, " | ".join(rule), *body))
    return table + "".join(f"\n{_as_markdown(note)}\n" for note in notes)


def _as_markdown(text: str) -> str:
    """A text in a cell of Markdown that begins no HTML, link, picture or further cell."""
    text = escape(_on_a_line(text), quote=False)
    return re.sub(r"([\\`\[\]|])", r"\\\1", text)


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


def with_spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, to two digits of the latter; one value has four digits."""
    if not all(map(math.isfinite, values)):
        return "not finite"
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:.4g}"
    spread = stdev(values)
    largest = max(abs(mean), spread)
    if not 1e-4 <= largest < 1e6 or spread < 1e-5 * largest:
        return f"{mean:.4g} ± {spread:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"


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
