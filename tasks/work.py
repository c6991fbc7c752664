"""`work`: what is left of a run: every method and seed trained and judged, to `result.json`."""

from __future__ import annotations

import difflib
import math
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction, Ledger
from blackbox.words import counted
from blackbox.wrappers import Budgeted
from tasks import cost, methods, spending
from tasks.configuration import refused
from tasks.errors import NotApplicableError, ProblemError, ProblemWarning
from tasks.making import LABEL
from tasks.method import Method
from tasks.problem import Problem
from tasks.progress import Progress
from tasks.runs import calls, checkpoint, stamp
from tasks.runs.answers import Answers
from tasks.runs.folder import Run
from tasks.runs.result import NOT_APPLICABLE, REJECTED, TEST, VALIDATION, Row, plain, without_failed
from tasks.setup import Setup, Trained
from tasks.tally import Tally, calls_noted, noted_later, stack, unnoted
from tasks.training import everywhere
from tasks.workers import group
from zo.batches import map_tensors


def work(problem: Problem, run: Run, progress: Progress) -> None:
    """Do what is left of a run; it ends with `result.json`.

    Args:
        problem: What is trained, with the run's settings. Its boxes keep failed rows from here on.
        run: The run's folder, new or left off anywhere.
        progress: What the user sees.

    Raises:
        ConfigurationError: A method is unknown, or the run cannot end within its budget; no row was run.
        BudgetError: The budget is spent; the run goes on with a larger one.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1.
    """
    torch.set_num_threads(problem.config.threads)
    folder, code = group.journal_folder(run.path), run.code_versions()
    within_reach = not group.any_of(group.rank() > 0 and folder == run.path)
    with problem.making.attached(folder, code, within_reach=within_reach):
        wanted = checked(problem)
        problem.begin(run.path)
        problem.progress = progress
        boxes = list(problem.boxes.values())
        asked = unnoted(boxes)
        with calls_noted(folder, boxes, within_reach=within_reach):
            before = Tally(boxes).copy()
            noted = calls.read(folder)["rows"] - calls.read(folder, LABEL)["rows"]
            others = before.rows_run - noted  # a box of the class serves every run of it
            before.rows_run -= asked  # by the check, to make the data
            prepare(problem, wanted, max(0, others))
            if None in run.chosen.values():
                made = cost.rows_of_data(problem, Tally(list(problem.boxes.values())).since(before))
                run.choose(spending.steps_within(problem, wanted, len(run.seeds), made, list(run.chosen)))
                problem.config = replace(problem.config, **run.chosen)
            if run.chosen:
                progress.say(spending.told(problem, wanted))
            for line in cost.lines(problem, wanted, len(run.seeds), timed=not run.begun, before=before):
                progress.say(line)
            table = _rows(problem, run, wanted, progress)
    group.any_of(False)  # when all have noted their calls
    run.finish(table)


def _rows(problem: Problem, run: Run, wanted: Mapping[str, Method], progress: Progress) -> list[Row]:
    """Train and judge every method with every seed; the lines of the table."""
    table: list[Row] = []
    for seed in run.seeds:
        trained: dict[str, Trained] = {}
        fields: dict[str, Mapping[str, Any]] = {}
        for name, method in wanted.items():
            setup = setup_of(problem, run, name, seed, progress, trained)
            # for what draws without a key, such as dropout; checkpoints have its state
            torch.manual_seed(seed)
            tally = Tally(setup.boxes)
            before = tally.copy()
            try:
                trained[name] = method.train(setup)
            except NotApplicableError as error:
                if len(wanted) == 1:
                    raise
                progress.say(f"{setup.stage}: not applicable. {error}")
                run.truncate_metrics(setup.stage, -1)
                table.append(_given_up(setup, str(error), everywhere(tally.since(before))))
            else:
                found = evaluation(setup, trained[name])
                if not fields:
                    _warn_of_units(problem, [*found["figures"], *found["fields"], *trained[name].figures])
                table.append(_row(setup, trained[name], found))
                fields[name] = {kind: tensor.numpy() for kind, tensor in found["fields"].items()}
            last = name == list(wanted)[-1]
            if name in trained or (last and trained):
                problem.so_far(run, seed, trained, fields, last)
    known = next((row for row in table if row.metric), None)  # of what could not be judged it is not known
    if known is not None:
        told = {name: getattr(known, name) for name in ("metric", "unit", "units", "higher_is_better")}
        table = [row if row.metric else replace(row, **told) for row in table]
    return table


def checked(problem: Problem) -> dict[str, Method]:
    """The methods that a run trains by, if its settings go with the problem; no box is made for it.

    Raises:
        ConfigurationError: They do not.
        ProblemError: There is no such device.
    """
    config = problem.config
    _refuse_missing_device(config.device)
    wanted = methods.named(problem, config.methods)
    if config.rows is not None and problem.has_no_box():
        raise refused(
            "rows", "None for a problem without a black box, whose rows nothing bounds", config.rows
        )
    with noted_later(lambda: list(problem.boxes.values()) if "box" in vars(problem) else []):
        problem.check()
    return wanted


def prepare(problem: Problem, wanted: Mapping[str, Method], others: int = 0) -> None:
    """Set the boxes up for a run: failed rows are kept, rows bounded, and processes share what all ask.

    Args:
        problem: What is trained.
        wanted: The methods that train it.
        others: Rows that the boxes have run in this process for other runs, which cost this one nothing.

    Raises:
        ConfigurationError: A method cannot train with these settings, or these boxes.
        ProblemError: The budget of rows does not go with the boxes, or with several processes.
    """
    rows, group_of_run = problem.config.rows, group.process_group()
    for box in problem.boxes.values():
        box.failures = "keep"
    ledgers = {id(box.ledger) for box in problem.boxes.values()}
    if rows is not None and len(ledgers) > 1:
        raise ProblemError(
            f"rows: expected one black box, or several around one ledger, got {len(ledgers)}. Bound each by "
            "blackbox.Budgeted in box(self), and leave --rows out."
        )

    def bounded(box: BlackBoxFunction) -> bool:  # a box may see to it by itself
        return rows is None or any(isinstance(part, Budgeted) and part.rows <= rows for part in stack(box))

    if rows is not None and group_of_run is not None and not all(map(bounded, problem.boxes.values())):
        raise ProblemError(
            f"rows: expected a run in one process, which can keep to {rows:,} rows exactly, got several. "
            "Leave out --workers, or --rows."
        )

    def wrapped(box: BlackBoxFunction) -> BlackBoxFunction:
        shared = group_of_run is None or any(isinstance(part, zo.SharedRows) for part in stack(box))
        if rows is not None and not bounded(box):
            box = Budgeted(box, max(0, others + rows - problem.making.elsewhere))
        return box if shared else zo.SharedRows(box, group_of_run)

    problem.replace_boxes(wrapped)
    for method in wanted.values():  # last: a network may ask for data, and these for rows
        if method.check is not None:
            with torch.random.fork_rng(devices=()):
                method.check(problem)


def setup_of(
    problem: Problem, run: Run, name: str, seed: int, progress: Progress, trained: Mapping[str, Trained]
) -> Setup:
    """What a method is given, the same for all methods of a seed."""
    config = problem.config
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = problem.network()
    if not isinstance(network, nn.Module):
        raise ProblemError(
            f"{type(problem).__name__}.network: expected an nn.Module, got {type(network).__name__}."
        )

    def batch(step: int) -> Any:  # noqa: ANN401
        return map_tensors(lambda tensor: tensor.to(config.device), problem.data.train(seed, step))

    return Setup(
        problem=problem,
        run=run,
        name=name,
        seed=seed,
        network=network.to(config.device),
        steps=config.steps,
        batch=batch,
        objective=problem.objective,
        learning_rate=config.learning_rate,
        validate=problem.validate if problem.validates() else None,
        progress=progress,
        trained=trained,
    )


def evaluation(setup: Setup, trained: Trained) -> dict[str, Any]:
    """What `evaluate` says of a trained network: figures, fields and the ledger; kept, so asked for once."""
    path = checkpoint.evaluation(setup.run.path, setup.stage)
    of = stamp.evaluation(setup.run, trained.network)
    tally = Tally(setup.boxes)
    if path.exists():
        kept = checkpoint.load_evaluation(setup.run.path, setup.stage)
        if not group.any_of(not stamp.fits(setup.run, kept, of)):
            return kept
        setup.progress.say(
            f"{setup.stage}: its evaluation is of other weights, settings or code, so it is evaluated again."
        )
    before, folder = tally.copy(), group.journal_folder(setup.run.path)
    answers = Answers(f"{setup.stage}.test", folder, group.rank(), setup.run.code_versions())
    where = f"{type(setup.problem).__name__}.evaluate"
    with answers.used(aside=lambda box: not tally.counts(box)):
        told = setup.problem.judge(replace(setup, answers=answers), trained)
    figures: dict[str, Any] = {}
    fields: dict[str, Tensor] = {}
    values, failed = without_failed(told) if isinstance(told, Mapping) else ({}, {})
    for name, value in values.items():
        if isinstance(name, str) and not isinstance(value, str) and value is not None and _has_axes(value):
            try:
                # of a view, not all behind it; NumPy has no number of 16 bits as torch's
                tensor = torch.as_tensor(value).detach().cpu()
                fields[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).clone()
                continue
            except (TypeError, ValueError, RuntimeError):
                pass
        figures[name] = plain(where, name, value)
    if not figures:
        got = sorted(told) if isinstance(told, Mapping) else reprlib.repr(told)
        raise ProblemError(
            f"{where}: expected at least one figure by name, got {got}. Return {{'test error': ...}}."
        )
    spent = tally.since(before)
    spent.add(answers.recalled)
    ledger = asdict(everywhere(spent))
    found = {"figures": figures, "fields": fields, "failed": failed, "ledger": ledger, stamp.OF: of}
    path.parent.mkdir(exist_ok=True)
    checkpoint.save(path, found)
    answers.end()
    return found


def _has_axes(value: Any) -> bool:  # noqa: ANN401
    try:
        return np.ndim(value) > 0
    except (TypeError, ValueError, RuntimeError):
        return False


def _warn_of_units(problem: Problem, names: Sequence[str]) -> None:
    """Say where a unit's name is nearly that of a figure or array without one; others may come with data."""
    free = [name for name in (*names, "validation", "training loss") if name not in problem.units]
    for name in problem.units:
        close = [] if name in names else difflib.get_close_matches(name, free, n=1)
        if close and group.rank() == 0:
            warnings.warn(
                f"{type(problem).__name__}.units: expected names of figures and arrays of evaluate, got "
                f"{name!r}. Did you mean {close[0]!r}?",
                ProblemWarning,
                stacklevel=2,
            )


def _given_up(setup: Setup, why: str, spent: Ledger) -> Row:
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


def _row(setup: Setup, trained: Trained, found: Mapping[str, Any]) -> Row:
    outcome, ledger = trained.outcome, trained.outcome.ledger
    (metric, value), *others = found["figures"].items()
    finite = isinstance(value, int | float) and math.isfinite(value)
    extra: dict[str, Any] = {
        "weights": sum(weight.numel() for weight in trained.network.parameters()),
        "steps": outcome.step,
        "chosen step": outcome.best_step,
        "validation": outcome.best_validation,
        **({REJECTED: outcome.rejected} if outcome.rejected else {}),
        "dropped queries": trained.dropped,
        "rows of validation": outcome.judging.rows_run,
        "rows of test": found["ledger"]["rows_run"],
        **{name: plain(setup.name, name, figure) for name, figure in trained.figures.items()},
        **dict(others),
    }
    in_test = sum(found["ledger"][name] for name in ("rows_failed", "rows_skipped"))
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
        failed={**found["failed"], **failed},
    )


def _refuse_missing_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ProblemError(
            "device: expected a GPU that torch can use, got none. Leave out --device, or take cpu."
        )
    if device == "cuda":
        # convolutions would round to 10 bits there, in which a step of mu is lost
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False  # kernels chosen by their times round differently in each run
