"""`result.json`: the outcome of a run, in one schema for all tasks."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from blackbox import Ledger
from tasks.configuration import from_dict
from tasks.errors import ConfigurationError, ProblemError, RunFolderError
from tasks.folder import atomic, reading
from tasks.problem.report_contents import RowMean, standard_error, without_failed
from tasks.problem.trained import TrainingOutcome

SCHEMA = 1
NAME = "result.json"
SO_FAR = "so_far.json"  # the lines of a run that is not finished
VALIDATION, TEST = "validation", "the test"  # of a row's `failed`, beside the names of figures
REJECTED = "rejected validations"  # of a row's `extra`: those with too many failed rows to choose weights by
NOT_APPLICABLE = "not applicable"  # of a row's `extra`: why the method has nothing to go by
UNDER_WAY = "under way"  # of a row's `extra`: how far a training is that has no figure yet; in no file
WHOLE = (
    "weights",
    "steps",
    "chosen step",
    "dropped queries",
    "rows of validation",
    "rows of test",
)  # whole numbers in `extra`
# names in a row's `extra` that are no figures of `evaluate`, which become columns of the report unasked
NO_FIGURES = (*WHOLE, "validation", REJECTED, NOT_APPLICABLE, UNDER_WAY)
COLUMNS = "method", "seed", "rows", "queries", "seconds", "time"  # of tables: a training, and its cost
# of these, and of `failed`, the names that no figure may have: a report would tell it as the training's own
TAKEN = {*NO_FIGURES, *COLUMNS, TEST} - {"rows of test"}


def plain(where: str, name: object, value: Any) -> float | int | str | None:
    """A figure as it is kept in a result: true and false are 1 and 0, NumPy's and torch's numbers Python's.

    Raises:
        ProblemError: Its name is no text, or that of a number of the training, or it is no number, text or
            None.
    """
    if not isinstance(name, str):
        raise ProblemError(f"{where}: expected names that are texts, got {name!r}. Write it in quotes.")
    if name in TAKEN:
        raise ProblemError(
            f"{where}: expected figures of other names than the training's own numbers have, got {name!r}. "
            f"Give it another, such as {f'{name} of the test'!r}."
        )
    if value is None or isinstance(value, str):
        return value
    try:
        # by its name: NumPy would take a tensor from its device to see whether it is complex
        if np.ndim(value) == 0 and "complex" not in str(getattr(value, "dtype", type(value))):
            return int(value) if isinstance(value, bool | int | np.integer | np.bool_) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise ProblemError(
        f"{where}: expected a number, a text or an array of numbers as {name!r}, got {reprlib.repr(value)}. "
        "Leave it out, or make it one."
    )


@dataclass(frozen=True)
class Row:
    """One line of the table: one method, trained with one seed, and one figure on test data."""

    method: str
    """As in the table of a paper: "ZO-SOL"."""
    seed: int
    metric: str
    """What `value` is: "MAE"."""
    value: float | None
    """None where there is no finite figure."""
    unit: str = ""
    rows: int = 0
    """Black-box rows that training took."""
    queries: int = 0
    """Perturbed objectives that training took."""
    seconds: float = 0.0
    """Time in optimiser steps."""
    extra: dict[str, float | int | str | None] = field(default_factory=dict)
    """Further figures by name."""
    ledger: dict[str, Any] = field(default_factory=dict)
    """What black boxes counted in training, as `blackbox.Ledger.state_dict` gives it."""
    higher_is_better: bool = False
    """Of `value`: True for an accuracy."""
    units: dict[str, str] = field(default_factory=dict)
    """Of further figures, arrays and the loss, by name."""
    failed: dict[str, int] = field(default_factory=dict)
    """Rows that failed: those that a figure's mean leaves out, by its name; where there are any, of the
    "validation" that chose the weights, and box rows of "the test"."""
    role: str = ""
    """Whose part the method has in the report's first sentences, see `Method`; "" for its name's."""
    test_rows: int | None = None
    """Rows of data that `value` was measured on: those that came back, of which it is the mean, or all rows
    of the test data where `evaluate` gives one number; None where that is not known."""
    standard_error: float | None = None
    """The standard error of `value` over these rows; None if their numbers are unknown, or there is one."""
    by_row: tuple[float | None, ...] = ()
    """The number of each row, by which two methods are compared row by row; None where it failed."""

    @classmethod
    def of(
        cls,
        outcome: TrainingOutcome,
        figures: Mapping[str, Any],
        unit: str = "",
        *,
        higher_is_better: bool = False,
    ) -> Row:
        """The line of a stage that `tasks.methods.train` has trained.

        Args:
            outcome: The outcome of a stage with a name such as "seed-0/method".
            figures: The figures on test data, by name: numbers, texts, None, or `tasks.RowMean`; the first is
                the line's figure, others are further figures.
            unit: The unit of the first figure.
            higher_is_better: Whether a larger first figure is the better one, such as an accuracy.

        Raises:
            ConfigurationError: The stage has another form of name, or there is no figure.
        """
        named = re.fullmatch(r"seed-(\d+)/(.+)", outcome.stage)
        if named is None or not figures:
            raise ConfigurationError(
                f"Row.of: expected a stage named like 'seed-0/adam' and at least one figure, got "
                f"{outcome.stage!r} and {dict(figures)}."
            )
        values, failed = without_failed(figures)
        (metric, value), *more_figures = values.items()
        value = plain("Row.of", metric, value)
        number = math.nan if value is None or isinstance(value, str) else float(value)
        further = {name: plain("Row.of", name, figure) for name, figure in more_figures}
        choice = {"chosen step": outcome.best_step, "validation": outcome.best_validation}
        return cls(
            method=named[2],
            seed=int(named[1]),
            metric=metric,
            value=number if math.isfinite(number) else None,
            unit=unit,
            rows=outcome.ledger.rows_run,
            queries=int(outcome.metrics.get("queries", 0)),
            seconds=outcome.seconds,
            extra={**further, "steps": outcome.step, **choice},
            ledger=asdict(outcome.ledger),
            higher_is_better=higher_is_better,
            failed=failed | ({VALIDATION: outcome.best_failed} if outcome.best_failed else {}),
            **of_rows(by_row(figures[metric])),
        )


def by_row(figure: Any) -> tuple[float | None, ...]:
    """The number of each row behind a figure of `evaluate`; none where it is one number."""
    return figure.by_row if isinstance(figure, RowMean) else ()


def of_rows(rows: Sequence[float | None], known: int | None = None) -> dict[str, Any]:
    """The part of a line that says how well its figure is known.

    Args:
        rows: The number of each row, see `by_row`.
        known: How many rows there are, if their numbers are not known.
    """
    if not rows:
        return {"test_rows": known}
    count = sum(value is not None for value in rows)
    return {"test_rows": count, "standard_error": standard_error(rows), "by_row": tuple(rows)}


@dataclass(frozen=True)
class RunWarning:
    """A warning of a run, once in each training: in the words and the step of the first time."""

    text: str
    kind: str
    """Its class: "NoiseWarning"."""
    method: str = ""
    """"" where it was not in a method, as while data were made."""
    seed: int | None = None
    step: int | None = None
    """The optimiser step, from 1; 0 before the first; None outside of them, as in the test."""


@dataclass(frozen=True)
class Result:
    """The outcome of a run, with the machine and the versions."""

    task: str
    preset: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    table: tuple[Row, ...]
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    command: tuple[str, ...]
    started: str
    """ISO 8601, UTC."""
    finished: str
    """The same; "" of a run that is not finished, whose table has the lines that there are."""
    schema: int = SCHEMA
    calls: dict[str, Any] = field(default_factory=dict)
    """`rows` that black boxes ran in all: training, validation, test, timing, and what was run again after a
    kill; and `exact`, False where there may be more."""
    warnings: tuple[RunWarning, ...] = ()
    """In the order of the table, and of steps."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Methods and seeds of which a resume did no more, so that they have no line."""

    def write(self, folder: Path) -> None:
        """Write `result.json` atomically: a run that has one is finished. Others have `so_far.json`."""
        path = folder / (NAME if self.finished else SO_FAR)
        atomic.write_json(path, asdict(self))  # figures that are not finite become null

    @classmethod
    def read(cls, folder: Path, *, so_far: bool = False) -> Result:
        """Read `result.json` of a run folder.

        Args:
            folder: The folder of the run.
            so_far: Whether the lines of a run that is not finished are accepted.

        Raises:
            RunFolderError: The file is missing (the run is not finished), torn, or of another schema.
        """
        path, expectation = folder / NAME, "a finished run"
        if so_far and not path.exists():
            path, expectation = folder / SO_FAR, "a run of which a method is finished"
        try:
            values = reading.json_object(path, f"Delete it and run: blackbox resume {quote(str(folder))}")
        except FileNotFoundError:
            raise RunFolderError(
                f"{folder}: expected {expectation}, got one without {path.name}. "
                f"Finish it with: blackbox resume {quote(str(folder))}"
            ) from None
        return cls.of(values, path)

    @classmethod
    def of(cls, values: Mapping[str, Any], path: Path) -> Result:
        """The result that the values of a file say.

        Raises:
            RunFolderError: They are of another schema, or do not fit it; with the name of the file.
        """
        schema = values.get("schema")
        if schema != SCHEMA:
            raise RunFolderError(
                f"{path}: expected schema {SCHEMA}, got {schema!r}. Read it with the version that wrote it."
            )
        try:
            result = from_dict(cls, values)
        except ConfigurationError as error:
            raise RunFolderError(f"{path}: {error}") from None
        if wrong := next(_wrong_in(result), None):
            raise RunFolderError(f"{path}: expected {wrong}. Put back the file that the run wrote.")
        return result


def _wrong_in(result: Result) -> Iterator[str]:
    """Yield the faults that would break a report: "a number as rows, got 'x'"."""
    if not result.table:
        yield "a line for each method and seed, got none"
    if len({(row.method, row.seed) for row in result.table}) < len(result.table):
        yield "one line for each method and seed, got two of one"
    numbers: list[tuple[str, Any]] = [("calls.rows", result.calls.get("rows"))] if result.calls else []
    counts = {count.name for count in fields(Ledger)} - {"causes", "first_failure"}
    for row in result.table:
        if row.seed not in result.seeds:
            yield f"seeds {list(result.seeds)}, got a line of seed {row.seed}"
        numbers += [(name, getattr(row, name)) for name in ("rows", "queries", "seconds")]
        numbers += [(name, row.extra.get(name)) for name in WHOLE]
        numbers += [(name, value) for name, value in row.extra.items() if isinstance(value, int)]
        numbers += [(f"ledger.{name}", row.ledger.get(name)) for name in counts]
        numbers += row.failed.items()
        causes = row.ledger.get("causes") or {}
        if not isinstance(causes, dict):
            yield f"ledger.causes as an object, got {reprlib.repr(causes)}"
            continue
        numbers += [("ledger.causes", value) for value in causes.values()]
    for name, value in numbers:
        if value is not None and not (isinstance(value, int | float) and abs(value) < 2**63):  # nor NaN
            yield f"a number as {name}, got {reprlib.repr(value)}"
    if result.calls and not isinstance(result.calls.get("exact"), bool):
        yield f"true or false as calls.exact, got {reprlib.repr(result.calls.get('exact'))}"
