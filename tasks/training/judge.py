"""A trained network, judged once on test data: figures, arrays, and its line of the table."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blackbox import Ledger
from blackbox.arrays import as_tensor
from blackbox.errors import BlackBoxError, RowFailedError
from blackbox.failures import noted
from blackbox.notices import warn
from blackbox.words import counted
from tasks.errors import ProblemError, ProblemWarning
from tasks.folder import checkpoint, stamp
from tasks.folder.result import NOT_APPLICABLE, REJECTED, TEST, VALIDATION, Row, by_row, of_rows, plain
from tasks.problem.data import evaluating, unwritten
from tasks.problem.problem import Problem
from tasks.problem.report_contents import LOW, TEST_LOSS, RowMean, without_failed
from tasks.problem.trained import Trained
from tasks.rows.run_ledger import RunLedger
from tasks.rows.tally import RowTally, everywhere
from tasks.training.setup import Setup
from tasks.workers import group
from zo.batches import count_rows
from zo.errors import ObjectiveError


@dataclass(frozen=True)
class NetworkVerdict:
    """The figures of a network on test data.

    Attributes:
        figures: Figures by name; the first is the table's.
        fields: Arrays by name.
        failed: Rows that the means of figures leave out, by the figure's name.
        ledger: The boxes' counts meanwhile.
        by_row: The number of each row behind the first figure; none where that is one number.
    """

    figures: Mapping[str, Any]
    fields: Mapping[str, Tensor]
    failed: Mapping[str, int]
    ledger: Mapping[str, Any]
    by_row: tuple[float | None, ...] = ()


def judged(setup: Setup, trained: Trained, rows: RunLedger) -> tuple[Row, Mapping[str, Tensor]]:
    """The line of the table of a method that was trained, and the arrays that `evaluate` gave."""
    verdict = _verdict(setup, trained, rows)
    if list(setup.trained) == [setup.name]:  # the names are those of all methods: once for a seed
        warn_of_units(setup.problem, [*verdict.figures, *verdict.fields, *trained.figures])
    return _line(setup, trained, verdict), verdict.fields


def _verdict(setup: Setup, trained: Trained, rows: RunLedger) -> NetworkVerdict:
    """Return the verdict of `evaluate` on a trained network; asked for once, and kept in the run's folder."""
    path = checkpoint.evaluation(setup.run.path, setup.stage)
    of = stamp.evaluation(setup.run, trained.network)
    if path.exists():
        content = checkpoint.load_evaluation(setup.run.path, setup.stage)
        if not group.any_of(not stamp.fits(setup.run, content, of)):
            return NetworkVerdict(**{field.name: content[field.name] for field in fields(NetworkVerdict)})
        setup.progress.say(
            f"{setup.stage}: its evaluation is of other weights, settings or code, so it is evaluated again."
        )
    tally, answers = RowTally(setup.boxes), rows.answers_of(setup.stage)
    ledger_before = tally.copy()
    aside = answers.used(aside=lambda box: not tally.counts(box))
    name = f"{type(setup.problem).__name__}.evaluate"
    unchanged = unwritten(setup.problem.data.test, name)
    with noted() as causes, evaluating(trained.network), aside, unchanged:
        result = _with_verdict(
            setup.problem, trained.network, setup.problem.judge(replace(setup, answers=answers), trained)
        )
    ledger = tally.since(ledger_before)
    ledger.add(answers.recalled)
    ledger.first_failure = ledger.first_failure or (causes[0].sentence() if causes else None)
    ledger = everywhere(ledger)
    _refuse_without_answers(setup, ledger)
    figures, arrays, failed = _taken_apart(result, name)
    verdict = NetworkVerdict(figures, arrays, failed, asdict(ledger), by_row(result[next(iter(figures))]))
    path.parent.mkdir(exist_ok=True)
    checkpoint.save(path, {**vars(verdict), stamp.OF: of})
    answers.end()
    return verdict


def _with_verdict(problem: Problem, network: nn.Module, said: Any) -> Any:
    """Put the test loss before the figures of `evaluate`, if nothing says whether the first is a verdict.

    A mass or a delay alone says nothing of constraints that the objective has.

    Args:
        problem: It asks its boxes for the test data once more, where the test loss is not among the figures.
        network: The one that is judged.
        said: Figures and arrays by name.
    """
    named = said.items() if isinstance(said, Mapping) else ()
    figures = [str(name) for name, value in named if not _has_axes(value)]
    first = figures[0] if figures else TEST_LOSS
    says = problem.says_which_is_better() or LOW.search(first.lower())
    if says or problem.data.test is None or type(problem).objective is Problem.objective:
        return said
    if TEST_LOSS in said:
        return {TEST_LOSS: said[TEST_LOSS], **said}
    try:
        losses = problem.losses(network, problem.data.test)
    except BlackBoxError:
        raise
    except Exception as error:  # test data may be other than what the objective takes
        warn(
            f"{type(problem).__name__}: expected an objective that takes the test data, as nothing says "
            f"whether a low {first} is good; got {type(error).__name__}: {error}. Networks are judged by the "
            f"{first} alone. If it is a verdict, say higher_is_better = False or True in the class.",
            ProblemWarning,
        )
        return said
    return {TEST_LOSS: RowMean(losses), **said}


def _refuse_without_answers(setup: Setup, spent: Ledger) -> None:
    """Refuse a test without any answered row, as of a server that is down: it shows nothing of a network.

    Rows that came back, but not finite, are answers: a network may drive a solver there.

    Args:
        setup: The setup of the training that is judged.
        spent: The boxes' counts, with their answers in an earlier process.
    """
    without = spent.rows_raised + spent.rows_timed_out + spent.rows_lost
    if not without or without + spent.rows_skipped < spent.rows_asked:
        return
    raise RowFailedError(
        f"{setup.stage}: expected a test with answers of the black box, got none to "
        f"{counted(without, 'row')}: all of them failed. The first: {spent.first_failure or 'not known'}. "
        "Nothing of this test is kept: mend the box, or start its server; the run then goes on with it. If "
        f"that is how the box answers a network of {setup.name!r}, begin a run with other --methods."
    )


def _taken_apart(said: Any, where: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, int]]:
    """Split the result of a problem's `evaluate` into figures, arrays, and failed rows."""
    figures: dict[str, Any] = {}
    arrays: dict[str, Tensor] = {}
    values, failed = without_failed(said) if isinstance(said, Mapping) else ({}, {})
    for name, value in values.items():
        if isinstance(name, str) and not isinstance(value, str) and value is not None and _has_axes(value):
            try:
                # of a view, not all behind it; NumPy has no number of 16 bits as torch's
                tensor = as_tensor(value).cpu()
                arrays[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).clone()
                continue
            except (TypeError, ValueError, RuntimeError):
                pass
        figures[name] = plain(where, name, value)
    if not figures:
        got = sorted(said) if isinstance(said, Mapping) else reprlib.repr(said)
        mend = "Return {'test error': ...}."
        if arrays:
            listed = ", ".join(f"{name!r} of shape {tuple(array.shape)}" for name, array in arrays.items())
            mend = (
                f"A figure is one number, and what has axes, {listed}, is kept for pictures: give a mean, or "
                "tasks.RowMean(errors) of one error for each row."
            )
        raise ProblemError(f"{where}: expected at least one figure by name, got {got}. {mend}")
    return figures, arrays, failed


def _has_axes(value: Any) -> bool:
    try:
        return np.ndim(value) > 0
    except (TypeError, ValueError, RuntimeError):
        return False


def warn_of_units(problem: Problem, names: Sequence[str]) -> None:
    """Say where a unit's name is nearly that of a figure or array without one; others may come with data."""
    free = [name for name in (*names, "validation", "training loss") if name not in problem.units]
    for name in problem.units:
        close = [] if name in names else difflib.get_close_matches(name, free, n=1)
        if close and group.rank() == 0:
            warn(
                f"{type(problem).__name__}.units: expected names of figures and arrays of evaluate, got "
                f"{name!r}. Did you mean {close[0]!r}?",
                ProblemWarning,
            )


def _line(setup: Setup, trained: Trained, verdict: NetworkVerdict) -> Row:
    """The line of the table of a method that was trained and judged."""
    outcome, ledger = trained.outcome, trained.outcome.ledger
    (metric, value), *more_figures = verdict.figures.items()
    finite = isinstance(value, int | float) and math.isfinite(value)
    extra: dict[str, Any] = {
        "weights": sum(weight.numel() for weight in trained.network.parameters()),
        "steps": outcome.step,
        "chosen step": outcome.best_step,
        "validation": outcome.best_validation,
        **({REJECTED: outcome.rejected} if outcome.rejected else {}),
        "dropped queries": trained.dropped,
        "rows of validation": outcome.judging.rows_run,
        "rows of test": verdict.ledger["rows_run"],
        **{name: plain(setup.name, name, figure) for name, figure in trained.figures.items()},
        **dict(more_figures),
    }
    in_test = sum(verdict.ledger[name] for name in ("rows_failed", "rows_skipped"))
    failed = {name: count for name, count in ((VALIDATION, outcome.best_failed), (TEST, in_test)) if count}
    return Row(
        method=setup.name,
        seed=setup.seed,
        metric=metric,
        value=float(value) if finite else None,
        unit=setup.problem.units.get(metric, ""),
        rows=ledger.rows_run if setup.boxes else int(outcome.metrics.get("rows", 0)),
        queries=trained.queries,
        seconds=outcome.seconds,
        extra=extra,
        ledger=asdict(ledger),
        higher_is_better=setup.problem.higher_is_better,
        units=dict(setup.problem.units),
        failed={**verdict.failed, **failed},
        **of_rows(verdict.by_row, _test_rows(setup.problem)),
    )


def _test_rows(problem: Problem) -> int | None:
    """Rows of the test data; None where it has none, or a judgement of its own."""
    if problem.data.test is None or type(problem).judge is not Problem.judge:
        return None
    try:
        return count_rows(problem.data.test)
    except ObjectiveError:  # an evaluate of one's own takes test data of any form
        return None


def line_without(setup: Setup, why: str, spent: Ledger) -> Row:
    """The line of a method that is not applicable, with all rows that it ran before that was known."""
    ran = f" It had run {counted(spent.rows_run, 'row')} by then." if spent.rows_run else ""
    return Row(
        setup.name,
        setup.seed,
        "",
        None,
        rows=spent.rows_run,
        extra={NOT_APPLICABLE: why + ran},
        ledger=asdict(spent),
    )


def with_one_metric(table: Sequence[Row]) -> list[Row]:
    """Return the lines; methods that could not be judged get the metric of the others."""
    example = next((row for row in table if row.metric), None)
    if example is None:
        return list(table)
    metric = {name: getattr(example, name) for name in ("metric", "unit", "units", "higher_is_better")}
    return [row if row.metric else replace(row, **metric) for row in table]
