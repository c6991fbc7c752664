"""A run taken up again: the plan in its folder, and whether it is the one at hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tasks.errors import RunFolderError
from tasks.folder import changed_code
from tasks.folder.run import Run
from tasks.methods.by_name import methods_named
from tasks.planning.plan import Plan, plan_of
from tasks.problem import problems
from tasks.problem.problem import Problem


def reopened(folder: Path, plan: Plan, *, any_seeds: bool = False) -> tuple[Run, Plan]:
    """The run of a folder, if it is of this plan; a larger budget of rows is taken over.

    Args:
        folder: The run's folder.
        plan: The expected plan of the run.
        any_seeds: Whether to take the run's seeds, whatever the plan has.

    Returns:
        The run, and the plan with its seeds, and with the settings that it has chosen by its budget.

    Raises:
        RunFolderError: The run is of another problem, or of other settings or seeds.

    Warns:
        CheckpointWarning: The file with the problem has changed.
    """
    run, problem, terms = Run.open(folder), plan.problem, plan.terms
    if run.script or run.task != terms.task:
        of = "a script with a loop of its own" if run.script else run.task
        raise RunFolderError(
            f"{run.path}: expected a run of {terms.task}, got one of {of}. Give its own folder, or "
            "leave resume out for a new run."
        )
    if run.problem not in ("", terms.problem) and not is_gone(run):
        came = terms.problem or "a class that no other process finds"
        raise RunFolderError(
            f"{run.path}: expected the problem that it was begun with, {run.problem}, got {came}. "
            "Give that class, or leave resume out for a new run."
        )
    rows = problem.config.rows
    if rows is not None and run.config.get("rows") not in (None, rows):
        run = run.with_budget(rows)
    same = sorted(run.chosen) == sorted(plan.chosen)
    plan = plan.choosing(run.chosen) if same else replace(plan, chosen=dict(run.chosen))
    if any_seeds:
        plan = replace(plan, seeds=run.seeds)
    if changes := run.changed(plan.terms):
        raise RunFolderError(
            f"{run.path}: expected the settings of that run, got others: {changes}. Take its settings, or "
            "leave resume out for a new run."
        )
    changed_code.warn_of_changes(run, plan.terms.code)
    return run, plan


def plan_in(run: Run, *, trusted: bool = False) -> Plan:
    """The plan that a folder has in writing; executes the code that the run names, see `problem_of`."""
    problem = problem_of(run, trusted=trusted)
    return plan_of(
        problem,
        methods_named(problem),
        run.seeds,
        preset=run.preset,
        where=run.problem,
        chosen=run.chosen,
    )


def problem_of(run: Run, *, trusted: bool = False) -> Problem:
    """The problem of a run with its settings; executes the code that the run names.

    Args:
        run: Its folder.
        trusted: Whether to execute code that this user has not run.

    Raises:
        RunFolderError: The run does not say where its problem is.
        TrustError: It names code that is not trusted.
    """
    if not trusted:
        run.refuse_untrusted()
    code = run.problem_code
    if code is None:
        raise RunFolderError(
            f"{run.path}: expected a run that says where its problem's class is, got one that does not. "
            f"{how_to_go_on(run)}"
        )
    changed_code.warn_of_changes(run)
    kind = problems.load(code)
    return kind(run.configuration(kind.Config, trusted=trusted), folder=Path(run.data))


def is_gone(run: Run) -> bool:
    """Say whether the file that its problem was in is no more there."""
    place = None if run.problem_code is None else run.problem_code.target.place
    return isinstance(place, Path) and not os.path.isfile(place)


def how_to_go_on(run: Run) -> str:
    """Advise on a problem whose class only this process has."""
    return (
        "Its problem is of a notebook, of a terminal or of a function, where no other process finds it. To "
        f"go on with it there, repeat the call of tasks.run with resume={str(run.path)!r}."
    )
