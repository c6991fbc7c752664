"""Whether a run's rows will do for what is left of it, as its first test shows what a test takes.

A problem's own `evaluate` may ask a box more often than its test data have rows, which is known only when it
was asked once. Most runs begin with `none`, so that they stop here before any row was spent on training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blackbox import Budgeted, BudgetError
from blackbox.words import counted
from tasks.folder import checkpoint
from tasks.folder.result import Row
from tasks.folder.run import stage_name
from tasks.plan import Plan
from tasks.problem import Problem
from tasks.tally import stack
from tasks.trial import TRIES


def refuse_to_run_out(plan: Plan, folder: Path, table: Sequence[Row]) -> None:
    """Stop a run whose trainings and tests take more rows than it has left.

    Args:
        plan: That is settled.
        folder: Of the run.
        table: What was judged, of which the first line's test is taken for all others.

    Raises:
        BudgetError: They do, at the least that they take; `enough` is a budget that would do.
    """
    problem = plan.problem
    parts = [part for box in problem.boxes.values() for part in stack(box) if isinstance(part, Budgeted)]
    test = table[0].extra.get("rows of test")
    if plan.rows is None or plan.config.rows is None or not parts or not isinstance(test, int):
        return
    if type(problem).judge is not Problem.judge:  # which may ask more for one method than for another
        return
    left, least, most, tests = min(part.rows_left for part in parts), 0, 0, 0
    for stage, name in [(stage_name(seed, name), name) for seed in plan.seeds for name in plan.methods]:
        if checkpoint.evaluation(folder, stage).exists():
            continue
        tests += 1
        if not checkpoint.of_stage(folder, stage).exists() and plan.rows.steps.get(name):
            validation = plan.rows.validation or 0
            least, most = (
                rows + by[name] + validation
                for rows, by in ((least, plan.rows.steps), (most, plan.rows.checked))
            )
    if least + tests * test <= left:
        return
    error = BudgetError(
        f"rows: expected the rest of the run to take the {counted(left, 'row')} that are left, got a plan of "
        f"at least {least + tests * test:,}: the first test took {counted(test, 'row')}, and there "
        f"{'is' if tests == 1 else 'are'} {tests} more, beside {least:,} of training and validation. None of "
        "these was run. Ask less in evaluate, begin anew with fewer steps, or raise the budget."
    )
    timed = TRIES * plan.rows.sizes.objective  # again, if no step is done yet
    error.enough = plan.config.rows - left + timed + most + tests * test
    raise error
