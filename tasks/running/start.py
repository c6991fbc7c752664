"""The way of a run: planned, given a folder, its stages trained and judged one after another, reported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.failures import exits_as_errors
from tasks import report
from tasks.errors import ConfigurationError
from tasks.folder import changed_code
from tasks.folder.place import discard
from tasks.folder.result import Result
from tasks.folder.run import Run
from tasks.listeners.callbacks import Callback, Listeners
from tasks.listeners.progress import Progress, make_progress
from tasks.methods.by_name import methods_named, warn_of_unread
from tasks.planning import cost
from tasks.planning.plan import Plan, left_to_the_budget, plan_of
from tasks.planning.spending import settled
from tasks.planning.trial import asked
from tasks.problem import problems
from tasks.problem.problem import Problem
from tasks.problem.silence import Silence
from tasks.rows.binding import Bound
from tasks.rows.first_rows import FirstRows
from tasks.running.finished import ONE_AT_A_TIME, FinishedRun, with_answers
from tasks.running.rehearsal import rehearsed
from tasks.running.resume import how_to_go_on, plan_in, reopened
from tasks.running.same_data import warn_of_other_data
from tasks.running.table import table_of
from tasks.running.torch_arithmetic import set_torch
from tasks.training.interruption import ending_interrupts, same_directory
from tasks.workers import group


def run(
    problem: Problem,
    *,
    seeds: int | Sequence[int] | None = None,
    runs: Path | str = "runs",
    resume: Path | str | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> FinishedRun:
    """Train and judge a problem by every method that its settings name, and write the report.

        run = tasks.run(Brusselator(unroll=6), methods=["none", "tangents"], steps=300)
        run.table

    The folder is as one of `blackbox run`: killed, it goes on with `blackbox resume`, or with `resume=`.

    Args:
        problem: The problem to train.
        seeds: How many trainings of each method, or which seeds; None for one, or for the seeds of `resume`.
        runs: The folder in which the run's folder is made.
        resume: A folder to go on with, of the same problem, settings and seeds; `rows` may be larger.
        progress: The progress that the user sees; bars in a terminal or notebook, lines elsewhere, if None.
        callbacks: Callbacks while the run trains, beside those that the problem's class names.
        **settings: Settings that depart from those of `problem`.

    Raises:
        ConfigurationError: A setting or method is unknown or out of its range; no row was run.
        BudgetError: The budget of rows is spent.
    """
    problems.refuse_while_executing("tasks.run")
    if "folder" in settings:
        raise ConfigurationError(
            "tasks.run: no setting is named 'folder'. Give runs= for where the run's folder is made, and the "
            "problem its folder= for where its data are."
        )
    if isinstance(seeds, int | np.integer):
        seeds = range(int(seeds))
    problem = problems.made_anew(problem, **settings)
    plan = planned(problem, (0,) if seeds is None else seeds, by_hand=settings)
    if resume is None:
        begun = Run.create(Path(runs), plan.terms)
    else:
        begun, plan = reopened(Path(resume), plan, any_seeds=seeds is None)
    begun.here.callbacks.extend(callbacks)
    try:
        return finish(begun, plan, progress)
    except Exception:
        if resume is None:
            discard(begun.path)  # if nothing was begun
        raise


def planned(
    problem: Problem,
    seeds: Sequence[int],
    *,
    by_hand: Collection[str],
    preset: str | None = None,
    where: str | None = None,
) -> Plan:
    """The plan of a new run, by the methods that the problem's settings name, or its budget; see `plan_of`.

    Args:
        problem: The problem with its settings.
        seeds: The seeds; with each of them, every method is trained once.
        by_hand: Names of the settings that the user set to their usual values.
        preset: The preset that the settings started from; if None, the one that equals them.
        where: The place of the problem's class; if None, its own.
    """
    as_set = problem
    problem, choice = left_to_the_budget(problem, preset, by_hand)
    methods = methods_named(problem)
    warn_of_unread(as_set, methods)
    return plan_of(problem, methods, seeds, preset=preset, where=where, chosen=choice)


def finish(run: Run, plan: Plan, progress: Progress | None = None) -> FinishedRun:
    """Do the rest of a run in this process, and write its report.

    Args:
        run: The run's folder, new or left off anywhere.
        plan: The plan of the run.
        progress: The progress that the user sees; bars in a terminal or notebook, lines elsewhere, if None.
    """
    as_named, run = run, run.absolute()  # a box may change the working directory
    with ONE_AT_A_TIME, ending_interrupts(), run.lock(), same_directory():
        run.here.callbacks.extend(plan.problem.callbacks)
        goes_on, bound = not run.finished, None
        if goes_on:
            with make_progress() if progress is None else progress as display:
                display.say(f"Run folder: {as_named.path}")
                if not run.problem:
                    display.say(how_to_go_on(run))
                with run.noting(), exits_as_errors("the problem"):  # status 0 would pass for a result
                    bound = carry_out(run, plan, display)
                    problem = bound.problem
            run = run.reread()
        else:
            problem = with_answers(run, plan.problem)
        # without a page it was killed before: callbacks are called again
        if goes_on or not (run.path / report.NAME).is_file():
            Listeners(run).tell("on_result", run, Result.read(run.path))
        report.write(run, problem)
        if bound is not None:
            bound.unbound()
    return FinishedRun(replace(run, path=as_named.path), problem)


def take_part(run: Run, without: Collection[str] = ()) -> None:
    """Do what the first of several processes does, in a copy of the run's folder that no one will see.

    Args:
        run: The copy.
        without: Methods that are left out.
    """
    if not run.finished:
        with ending_interrupts():
            carry_out(run, plan_in(run, trusted=True).without(without), Silence())


def carry_out(run: Run, plan: Plan, progress: Silence) -> Bound:
    """Train and judge the rest of a run, by its plan; it ends with `result.json`.

    Each of several processes does all of it, with the same numbers.

    Args:
        run: The run's folder, new or left off anywhere.
        plan: The plan of the run.
        progress: The progress that the user sees.

    Returns:
        The problem of this process: its boxes keep failed rows.

    Raises:
        ConfigurationError: The problem refuses its settings, or the run cannot end within its budget; no row
            was run.
        RunFolderError: The data are other ones than those that the run began with.
        BudgetError: The budget is spent; the run goes on with a larger one.
        Interrupted: The run was stopped by Ctrl-C, SIGTERM or SIGUSR1.
    """
    bound = Bound.of(plan.problem, progress)
    problem = bound.problem
    set_torch(plan.config)
    with bound.ledger.in_folder(run):  # what boxes answer while data is made is kept there
        bound.check()  # which may make data, and boxes
        problem.begin(run.path)
        programs = changed_code.note_files(run, problem.boxes.values())
        with bound.written():  # from here on boxes are bounded, and their rows written down
            first_rows = FirstRows(run.path, problem.boxes)
            with first_rows.watching():
                demand = asked(bound, plan.methods, len(plan.seeds))
                rehearse = rehearsed if plan.is_open else None
                answers = partial(bound.ledger.answers_of, work="steps")
                timed = not run.begun
                plan = settled(plan, bound, demand, answers, timed=timed, rehearse=rehearse)
                run.choose(plan.chosen)
                run = run.reread()
                warn_of_other_data(run, plan, bound, programs)
                for sentence in cost.sentences(plan, bound):
                    progress.say(sentence)
                plan.trial.refuse_unread()
                first_rows.ask_again(plan.config.rows, plan.config.device)
                table = table_of(run, plan, bound, progress)
    group.wait_for_all()  # until their rows are written down too
    (run.path / report.NAME).unlink(missing_ok=True)  # of what there was before the end
    lines = {(row.method, row.seed) for row in table}
    every = [(name, seed) for name in methods_named(problem) for seed in plan.seeds]
    run.finish(table, left_out=[stage for stage in every if stage not in lines])
    return bound
