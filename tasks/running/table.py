"""The table of a run: each method of each seed is set up, trained and judged, and has its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from blackbox import Budgeted
from blackbox.errors import BudgetError
from blackbox.words import counted
from tasks.errors import NotApplicableError
from tasks.folder import checkpoint
from tasks.folder.result import Row
from tasks.folder.run import Run, stage_name
from tasks.methods.by_name import methods_named
from tasks.planning.plan import Plan
from tasks.planning.spending import LEAST, VALIDATIONS
from tasks.planning.trial import TRIES
from tasks.problem.problem import Problem
from tasks.problem.silence import Silence
from tasks.problem.trained import Trained
from tasks.rows.binding import Bound
from tasks.rows.budget_parts import seconds_left
from tasks.rows.stacks import stack
from tasks.rows.tally import RowTally, everywhere
from tasks.training import judge
from tasks.training.setup import setup_of
from tasks.workers import group


def table_of(run: Run, plan: Plan, bound: Bound, progress: Silence) -> list[Row]:
    """The lines, in the order of seeds and methods; stages that are finished are loaded, not repeated.

    Finished stages of methods that the plan leaves out are loaded, too; otherwise these are left alone.
    """
    problem, table = bound.problem, list[Row]()
    for seed in plan.seeds:
        trained: dict[str, Trained] = {}  # which the methods behind may start from
        fields: dict[str, Mapping[str, Any]] = {}
        every = methods_named(problem)
        finished_names = {
            name for name in every if checkpoint.evaluation(run.path, stage_name(seed, name)).exists()
        }
        methods = {
            name: method for name, method in every.items() if name in plan.methods or name in finished_names
        }
        for name, method in methods.items():
            with run.here.notes.at(stage_name(seed, name)):
                setup = setup_of(problem, run, name, seed, progress, trained)
                reserve, seconds = _limits(plan, seed, name, table, group.of_all(bound.elapsed)[0])
                setup = replace(setup, reserve=reserve, seconds=seconds)
                torch.manual_seed(seed)  # for what draws without a key, as dropout; checkpoints keep it
                tally = RowTally(setup.boxes)
                ledger_before = tally.copy()
                try:
                    trained[name] = method.train(setup)
                except NotApplicableError as error:
                    if len(methods) == 1:
                        raise
                    progress.say(f"{setup.stage}: not applicable. {error}")
                    line = judge.line_without(setup, str(error), everywhere(tally.since(ledger_before)))
                    table.append(replace(line, role=method.role))
                else:
                    line, arrays = judge.judged(setup, trained[name], bound.ledger)
                    table.append(replace(line, role=method.role))
                    if name not in finished_names:
                        run.note(judge.with_one_metric(table))
                    if len(table) == 1:
                        _refuse_to_run_out(plan, bound, run, table)
                    fields[name] = {kind: tensor.numpy() for kind, tensor in arrays.items()}
            last = name == list(methods)[-1]
            if name in trained or (last and trained):
                problem.so_far(run, seed, trained, fields, last)
    return judge.with_one_metric(table)


def _limits(
    plan: Plan, seed: int, name: str, table: Sequence[Row], elapsed: float
) -> tuple[int | None, float | None]:
    """Rows to reserve for the work after a training, and the training's seconds; None without such a budget.

    Args:
        plan: A plan that is settled.
        seed: The seed of the training.
        name: Its method.
        table: The lines so far; the first one gives the rows of a test.
        elapsed: Seconds that the run has taken in this process.
    """
    stages, rows, minutes = (
        [(at, way) for at in plan.seeds for way in plan.methods],
        plan.rows,
        plan.config.minutes,
    )
    if (seed, name) not in stages:  # it is finished, and left out of the plan
        return None, None
    behind = stages[stages.index((seed, name)) + 1 :]
    reserve, seconds, test = None, None, 0
    if rows is not None:
        of_first = table[0].extra.get("rows of test") if table else None
        test = max(rows.once["test"], of_first if isinstance(of_first, int) else 0) * (1 + len(behind))
        if plan.config.rows is not None and "steps" in plan.chosen:
            validations = rows.once["validation"]  # of which one is left where a training ends
            trainings = sum(rows.checked.get(way, 0) + validations for _, way in behind)
            reserve = trainings + validations // VALIDATIONS + test
    if minutes is not None:
        trainings = 1 + sum(way != "none" for _, way in behind)
        earlier = max(elapsed, sum(row.seconds for row in table))
        tests = 0.0 if rows is None else plan.trial.seconds(test, rows.sizes)
        seconds = (seconds_left(minutes, earlier) - tests) / trainings
    return reserve, seconds


def _refuse_to_run_out(plan: Plan, bound: Bound, run: Run, table: Sequence[Row]) -> None:
    """Stop a run whose trainings and tests take more rows than it has left.

    A problem's own `evaluate` may ask a box more often than its test data have rows, which is known only when
    it was asked once. Most runs begin with `none`, so that they stop here before a row is spent on training.

    Args:
        plan: A plan that is settled.
        bound: Its problem in the run.
        run: The run; its folder says which stages are done.
        table: The lines so far; the first line's test stands for all others.

    Raises:
        BudgetError: The least rows that they take are too many; `enough` is a sufficient budget.
    """
    problem = bound.problem
    budgets = [part for box in problem.boxes.values() for part in stack(box) if isinstance(part, Budgeted)]
    test = table[0].extra.get("rows of test")
    if plan.rows is None or plan.config.rows is None or not budgets or not isinstance(test, int):
        return
    if type(problem).judge is not Problem.judge:  # which may ask more for one method than for another
        return
    rows_left, least, most, tests, kept = min(budget.rows_left for budget in budgets), 0, 0, 0, 0
    for stage, name in [(stage_name(seed, name), name) for seed in plan.seeds for name in plan.methods]:
        if checkpoint.evaluation(run.path, stage).exists():
            continue
        tests += 1
        kept += min(test, bound.ledger.answers_of(stage).rows_known)  # of a test that was cut short
        if not checkpoint.of_stage(run.path, stage).exists() and plan.rows.steps.get(name):
            validation = plan.rows.validation or 0
            least += plan.rows.steps[name] + validation
            most += plan.rows.checked[name] + validation
    if "steps" in plan.chosen:  # which become fewer
        least = -(-least * LEAST // max(LEAST, plan.config.steps))
    in_tests = tests * test - kept
    if least + in_tests <= rows_left:
        return
    error = BudgetError(
        f"rows: expected the rest of the run to take the {counted(rows_left, 'row')} that are left, got a "
        f"plan of at least {least + in_tests:,}: the first test took {counted(test, 'row')}, and there "
        f"{'is' if tests == 1 else 'are'} {tests} more, beside {least:,} of training and validation. None of "
        "these was run. Ask less in evaluate, begin anew with fewer steps, or raise the budget."
    )
    timed = TRIES * plan.rows.sizes.objective  # again, if no step is done yet
    error.enough = plan.config.rows - rows_left + timed + most + in_tests
    raise error
