"""The way of a run: planned, given a folder, its stages trained and judged one after another, reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blackbox.failures import exits_as_errors
from tasks import cost, judge, outlook, problems, report
from tasks.callbacks import Callback, Told
from tasks.errors import ConfigurationError, NotApplicableError
from tasks.finished import ONE_AT_A_TIME, FinishedRun
from tasks.interruption import ending_interrupts, same_directory
from tasks.plan import Plan, left_to_the_budget, plan_of
from tasks.problem import Problem
from tasks.progress import Progress, make_progress
from tasks.resume import how_to_go_on, reopened
from tasks.runs.folder import Run, discard
from tasks.runs.result import Result, Row
from tasks.setup import Trained, setup_of
from tasks.tally import Tally, everywhere
from tasks.workers import group


def run(
    problem: Problem,
    *,
    seeds: int | Sequence[int] | None = None,
    runs: Path | str = "runs",
    resume: Path | str | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,  # noqa: ANN401
) -> FinishedRun:
    """Train and judge a problem by every method that its settings name, and write the report.

        run = tasks.run(Brusselator(unroll=6), methods=["none", "tangents"], steps=300)
        run.table

    The folder is as one of `blackbox run`: killed, it goes on with `blackbox resume`, or with `resume=`.

    Args:
        problem: What is trained.
        seeds: How many trainings of each method, or which seeds; None for one, or those of `resume`.
        runs: Where the run's folder is made.
        resume: A folder to go on with, of the same problem, settings and seeds; `rows` may be larger.
        progress: What the user sees; bars in a terminal or notebook, lines elsewhere, if None.
        callbacks: What is told while the run trains, beside those that the problem's class names.
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
    kind, usual = type(problem), type(problem).Config()
    problem = kind(problem.config, folder=problem.folder, **settings)
    names = [field.name for field in dataclasses.fields(usual)]
    by_hand = {name for name in names if getattr(usual, name) != getattr(problem.config, name)}
    config, chosen = left_to_the_budget(kind, problem.config, by_hand | settings.keys())
    problem = kind(config, folder=problem.folder)
    numbers: Sequence[int] = (0,)
    if seeds is not None:
        numbers = range(int(seeds)) if isinstance(seeds, int | np.integer) else seeds
    plan = plan_of(problem, numbers, dict.fromkeys(chosen))  # before there is a folder
    if resume is not None:
        made = reopened(Path(resume), problem, plan, any_seeds=seeds is None)
    else:
        made = Run.create(
            Path(runs),
            plan.task,
            next((name for name, preset in problem.presets.items() if preset == problem.config), "own"),
            problem.config,
            plan.seeds,
            data=problem.folder,
            problem=plan.where,
            chosen=chosen,
        )
    made.callbacks.extend(callbacks)
    try:
        return finish(made, problem, progress)
    except Exception:
        if resume is None:
            discard(made.path)  # if nothing was begun
        raise


def finish(run: Run, problem: Problem, progress: Progress | None = None) -> FinishedRun:
    """Do what is left of a run in this process, and write its report."""
    shown: AbstractContextManager[Progress] = make_progress() if progress is None else progress
    named, run = run, run.absolute()
    with ONE_AT_A_TIME, ending_interrupts(), run.lock(), same_directory():
        run.callbacks.extend(problem.callbacks)
        if not run.finished:
            with shown as told:
                told.say(f"Run folder: {named.path}")
                if not run.problem:
                    told.say(how_to_go_on(run))
                with exits_as_errors("the problem"):  # status 0 would pass for a result
                    carry_out(problem, run, told)
        if not (run.path / report.NAME).is_file():  # a kill in between leaves no page: they are told again
            Told(run).tell("on_result", run, Result.read(run.path))
        report.write(run, problem)
    return FinishedRun(named, problem)


def carry_out(problem: Problem, run: Run, progress: Progress) -> None:
    """Train and judge what is left of a run, by its plan; it ends with `result.json`.

    Of several processes each does all of it, with the same numbers.

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
    with problem.ledger.in_folder(run):
        plan = plan_of(problem, run.seeds, run.chosen)
        problem.begin(run.path)
        problem.progress = progress
        with problem.ledger.written(problem):
            plan = plan.settled(problem)
            run.choose(plan.chosen)
            for sentence in cost.told(problem, plan, timed=not run.begun):
                progress.say(sentence)
            table = _table(problem, run, plan, progress)
    group.wait_for_all()  # until their rows are written down too
    run.finish(table)


def _table(problem: Problem, run: Run, plan: Plan, progress: Progress) -> list[Row]:
    """The lines of the table: the stages of the plan, trained and judged in their order."""
    table: list[Row] = []
    for seed in plan.seeds:
        trained: dict[str, Trained] = {}  # which the methods behind may start from
        fields: dict[str, Mapping[str, Any]] = {}
        for name, method in plan.methods.items():
            setup = setup_of(problem, run, name, seed, progress, trained)
            torch.manual_seed(
                seed
            )  # for what draws without a key, such as dropout; checkpoints have its state
            tally = Tally(setup.boxes)
            before = tally.copy()
            try:
                trained[name] = method.train(setup)
            except NotApplicableError as error:
                if len(plan.methods) == 1:
                    raise
                progress.say(f"{setup.stage}: not applicable. {error}")
                run.truncate_metrics(setup.stage, -1)
                table.append(judge.line_without(setup, str(error), everywhere(tally.since(before))))
            else:
                verdict = judge.judged(setup, trained[name])
                if not fields:
                    judge.warn_of_units(problem, [*verdict.figures, *verdict.fields, *trained[name].figures])
                table.append(judge.line(setup, trained[name], verdict))
                if len(table) == 1:
                    outlook.refuse_to_run_out(plan, problem, run.path, table)
                fields[name] = {kind: tensor.numpy() for kind, tensor in verdict.fields.items()}
            last = name == list(plan.methods)[-1]
            if name in trained or (last and trained):
                problem.so_far(run, seed, trained, fields, last)
    return judge.with_one_metric(table)
