"""`report.html` of a run: its outcome, its cost, its training, its failures, its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from tasks import tracebacks
from tasks.configuration import Config, flat, to_dict
from tasks.errors import ConfigurationError, ProblemError
from tasks.folder import changed_boxes, row_counts
from tasks.folder.machine import changes
from tasks.folder.result import Result
from tasks.folder.run import Run
from tasks.folder.under_way import measured, result_so_far
from tasks.folder.warning_notes import without_numbers
from tasks.problem.report_contents import Picture
from tasks.report import html_report, incomplete, lead, pictures, run_tables, training_part
from tasks.report.findings import Findings, warned_of
from tasks.report.html_report import Block, Details, Figure, Heading, Paragraph, Table, in_words
from tasks.report.method_scores import meaning, meaning_of_error, scores

if TYPE_CHECKING:
    from tasks.problem.problem import Problem

NAME = "report.html"


def write(run: Run, problem: Problem | None = None) -> Path:
    """Write the report of a run, and its table as `table.md` and `table.tex`.

    For a run that is not finished it reports the methods that are, and how far trainings under way are.

    Args:
        run: The run's folder.
        problem: The problem, for its own part of the page. If None, an old page stays as it is, since that
            part cannot be made again.

    Raises:
        RunFolderError: No method is finished or under way.
        ProblemError: The problem's `report` or `pictures` failed; the rest of the page is written.
    """
    with pictures.own_settings(), pictures.palette({} if problem is None else problem.looks):
        return _written(run, problem)


def _written(run: Run, problem: Problem | None) -> Path:
    whole, path = result_so_far(run), run.path / NAME
    if problem is None and not run.script and path.is_file() and whole.finished:
        return path
    facts = Findings(run, incomplete.comparable(whole))
    finished = Findings(run, measured(facts.result))
    notes = changed_boxes.read(run.path)
    about_error = [line for line in [meaning(facts.result)] if line]
    run_tables.write(run.path, run_tables.for_papers(facts.result), [*about_error, *notes])
    blocks: list[Block] = []
    about, defaults, failed, declared = "", {}, None, False
    if problem is None and run.problem:
        blocks.append(Paragraph("The problem's own part is not here: the report was made without its code."))
    elif problem is not None:
        try:
            about, defaults = problem.about(), _defaults(problem.config)
            declared = problem.says_which_is_better()
            if finished.result.table:  # its part is about figures
                blocks += _blocks(problem.report(finished), run.path)
        except Exception as error:  # the user's code; a long run has its table and curves all the same
            failed, reason = error, f"{type(error).__name__}: {error}"
            blocks.append(Paragraph(f"The problem's own part could not be made ({reason})."))
    result = facts.result
    ended = f"finished {result.finished}" if result.finished else "not finished"
    html_report.write(
        path,
        title=result.task.replace("-", " ").capitalize(),
        lead=[
            *([about] if about else []),
            *incomplete.sentences(run, whole),
            *lead.sentences(result, declared=declared),
            *lead.contradictions(facts),
        ],
        blocks=[
            *map(Paragraph, notes),
            *_tables(result, f", queries {problem.queries}" if problem is not None else ""),
            *training_part.blocks(facts),
            *_warnings(result),
            *blocks,
            *_ledger(result),
            *_settings(run, defaults),
            *_machine(run, result),
        ],
        footer=f"{' '.join(result.command)} · started {result.started}, {ended}",
    )
    if failed is not None and problem is not None:
        kind, where = type(problem), tracebacks.place(failed)
        part = "report: expected blocks" if kind.has_report() else "pictures: expected figures"
        raise ProblemError(
            f"{kind.__name__}.{part} for the report, got {type(failed).__name__}: {str(failed).rstrip('.')}"
            f"{where and f' ({where})'}. {'The run is finished and the' if whole.finished else 'The'} "
            f"rest is in {path}; mend it, then: "
            f"blackbox report {quote(str(run.path))}"
        ) from failed
    return path


def _blocks(given: Any, folder: Path) -> list[Block]:
    """Check the blocks that a problem's `report` gave, and save pictures; `ProblemError` for no such list."""
    if isinstance(given, str) or not all(isinstance(block, Block | Picture) for block in given):
        raise ProblemError(
            "report: expected a list of blocks of tasks.report.html_report, such as [Heading('Mine')], got "
            f"{given if isinstance(given, str) else list(given)!r:.80}."
        )
    blocks, number = list[Block](), 0
    for block in given:
        if isinstance(block, Picture):
            number += 1
            path = pictures.save(block.figure, folder / f"picture-{number}.png")
            blocks += [Heading("Pictures")] if number == 1 else []
            block = Figure(path, alt=block.caption, caption=block.caption)
        blocks.append(block)
    return blocks


def _tables(result: Result, queries: str) -> list[Block]:
    every = scores(result)
    finite = [score for score in every if math.isfinite(score.mean)]
    best = lead.leading(finite) if len(finite) > 1 else []
    start = lead.in_role(lead.START, every)
    extra = {} if start is None else start.rows[0].extra
    untrained = extra.get("steps") == 0 and extra.get("weights")  # a problem's own "none" may be no network
    note = f" {start.method}: the network with its first weights, untrained." if start and untrained else ""
    several = len(result.seeds) > 1
    if any(score.left_out for score in every):
        note = f" Rows left out failed, of all seeds together; the {every[0].metric} is without them.{note}"
    seeds = f"mean ± standard deviation of {len(result.seeds)} seeds" if several else "one seed"
    error = meaning_of_error(result)
    blocks: list[Block] = [
        Table(
            run_tables.shown(result),
            caption=f"What came out, {seeds}.{error and f' {error}'} Rows are those that the black boxes ran "
            "in optimiser steps (without a box, the rows of data that the objective was evaluated on)"
            f"{queries}; the time is that of the steps.{note}",
            emphasised=[every.index(score) for score in best],
        )
    ]
    more = run_tables.further(result)
    if len(more.columns) > max(html_report.DENSE, len(more)):  # then a line for each figure is narrower
        more = more.set_index("method").T.reset_index(names="figure")
    return blocks if more.empty else [*blocks, Table(more, caption=f"Further figures, {seeds}.")]


def _warnings(result: Result) -> list[Block]:
    """List the warnings of the run, each once, with the trainings and steps in which it first came."""
    if not result.warnings:
        return []
    places: dict[str, dict[str, list[str]]] = {}
    texts = warned_of(result)
    for warning in result.warnings:
        text = texts[warning.kind, without_numbers(warning.text)]
        seed = f"seed {warning.seed}" if warning.seed is not None and len(result.seeds) > 1 else ""
        step = "" if warning.step is None else f"step {warning.step}" if warning.step else "before step 1"
        at = ", ".join(filter(None, (seed, step)))
        places.setdefault(text, {}).setdefault(warning.method or "outside of training", []).append(at)
    rows = []
    for text, methods in places.items():
        listed = (
            f"{method} ({'; '.join(filter(None, at))})" if any(at) else method
            for method, at in methods.items()
        )
        rows.append((", ".join(listed), text))
    return [
        Heading("Warnings"),
        Table(
            ("where", "warning"),
            rows,
            caption="What the run warned of, each once, with the optimiser step in which it was said first, "
            "from 1.",
            prose=True,
        ),
    ]


def _ledger(result: Result) -> list[Block]:
    if not any(row.ledger.get(name) for row in result.table for name in ("rows_asked", "rows_run", "causes")):
        return []  # the problem has no box, or its own loop counts elsewhere
    several = f", in all {len(result.seeds)} seeds together" if len(result.seeds) > 1 else ""
    blocks: list[Block] = [
        Heading("The black box"),
        Table(
            run_tables.counts(result),
            caption=f"What the black boxes counted in optimiser steps{several}. Of validation (the one that "
            "chose the weights) and test only rows that failed are in it. Skipped rows were not run, since "
            "their input was not finite. Times of rows that ran side by side add up.",
        ),
    ]
    if result.calls:
        judged = any("rows of test" in row.extra for row in result.table)  # by a loop of one's own it is not
        text = (
            f"With validation{', test and timing,' if judged else ''} and with what was run again after a "
            f"kill, they ran {row_counts.in_words(result.calls)} "
            f"{'row' if result.calls['rows'] == 1 else 'rows'}."
        )
        if not result.calls["exact"]:
            text += " A process was killed, or broke off, while others ran rows for it, which are not known."
        elif result.calls["rows"] < sum(int(row.ledger.get("rows_run") or 0) for row in result.table):
            text += " The table has more: rows whose answers were in a file, or that several methods share."
        blocks.append(Paragraph(text))
    causes = run_tables.failures(result)
    if causes.empty:
        return [*blocks, Paragraph("No row failed in training.")]
    return [
        *blocks,
        Table(causes, prose=True, caption="Why rows failed, attempts that were repeated included."),
    ]


def _settings(run: Run, problem_settings: Mapping[str, Any]) -> list[Block]:
    common = to_dict(Config())
    # a loop of one's own has settings of its own, which may have the same names
    defaults = flat({**(common if common.keys() <= run.config.keys() else {}), **problem_settings})
    settings = flat(run.config)
    changed = [
        (name, in_words(value), in_words(defaults[name]))
        for name, value in settings.items()
        if name in defaults and value != defaults[name]
    ]
    blocks: list[Block] = [Heading("The run")]
    if changed:
        blocks.append(
            Table(
                ("setting", "here", "default"),
                changed,
                caption=f"Settings that differ from the defaults (preset {run.preset}).",
                prose=True,
            )
        )
    unchanged = {name: value for name, value in settings.items() if name not in [line[0] for line in changed]}
    seeds = {"seeds": run.seeds, "data": run.data}
    return [*blocks, Details("All other settings" if changed else "Settings", {**unchanged, **seeds})]


def _defaults(config: object) -> dict[str, Any]:
    """The defaults of a problem's settings; none where one has to be given."""
    try:
        return to_dict(type(config)())
    except (TypeError, ConfigurationError):
        return {}


def _machine(run: Run, result: Result) -> list[Block]:
    blocks: list[Block] = []
    changed = changes(run.versions, result.versions)
    if changed:
        blocks.append(Paragraph(f"Versions changed between the start and the end of the run: {changed}."))
    return [*blocks, Details("Machine and versions", {**result.machine, **result.versions})]
