"""What a plan costs, in words, before it is gone through: rows, queries and time by method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from time import perf_counter

import torch

from blackbox import Ledger, Parallel
from blackbox.words import counted
from tasks.errors import ConfigurationError
from tasks.method import Cost
from tasks.plan import TRIES, Plan
from tasks.problem import Problem
from tasks.progress import duration
from tasks.tally import Tally, stack
from tasks.workers import group

AGAIN = ("no-gradient", "identity", "student", "row-rge")  # autograd has no gradient past a row that failed
NONE_BACK = "No row of the first batch had a finite loss"  # how the line begins that says so


def told(problem: Problem, plan: Plan, *, timed: bool) -> list[str]:
    """What a run will do and cost, in words; refuses one that cannot end within its budget.

    Args:
        problem: With its settings; its boxes are asked for one batch's rows where `timed` says so.
        plan: That is settled.
        timed: Whether to run a batch's rows to see how long they take.

    Raises:
        ConfigurationError: More rows will be run than the budget has; none was run, but for the data.
    """
    sentences = [_chosen(plan), *plan.aside] if plan.chosen else []
    rows, seeds, budget = plan.rows, len(plan.seeds), plan.config.rows
    if rows is None:
        return [*sentences, *plan.instead]
    size, each, made = rows.sizes.batch, rows.sizes.objective, rows.made
    judging = {"validation": rows.validation, "test": rows.test}
    total = made + seeds * rows.least
    if budget is not None and total > budget:
        steps = ", ".join(f"{name} {count:,}" for name, count in rows.steps.items() if count)
        was = "was" if made == 1 else "were"
        run = f"{counted(made, 'row')} {was} run, to make the data." if made else "No row was run."
        raise ConfigurationError(
            f"rows: expected a run within its budget of {counted(budget, 'row')}, got a plan of at least "
            f"{total:,} in {counted(seeds, 'seed')} of: {steps}; validation and test {rows.judging:,}. {run} "
            "Raise --rows, or lower --steps, --batch, or the methods' settings."
        )
    most = total + seeds * rows.more
    # the rows that are timed count too, and must not be those that the end of the run needs
    spare = budget is None or total + TRIES * each <= budget
    trial = _tried(problem) if timed and spare and problem.boxes else Trial()
    total, most = total + trial.spent.rows_run, most + trial.spent.rows_run
    speed = "; answers came from a cache, so their time is not known" if trial.spent.rows_cached else ""
    speed = speed if trial.second is None else f", {1e3 * trial.second:.3g} ms a row"
    data = f"Cost: without a black box rows are those of the data, {each:,} for each query."
    boxes = (
        f"Cost: one evaluation of the objective on {counted(size, 'row')} of data runs "
        f"{counted(each, 'box row')}{speed}."
    )
    sentences += [boxes if problem.boxes else data]
    sentences += [_line(name, rows.costs[name], each, trial.second) for name in plan.methods]
    for name, count in judging.items():
        if count != 0:
            known = "the problem's own, not known beforehand" if count is None else counted(count, "row")
            sentences.append(f"  {name}, of each method: {known}")
    for name, count in (("making the data", made), ("timing", trial.spent.rows_run)):
        if count:
            have = "has" if count == 1 else "have"
            sentences.append(f"  {name}: {counted(count, 'row')}, which {have} been run")
    if problem.ledger.answers.full:
        sentences.append("  Not all that made the data is kept: each `blackbox resume` runs the rest again.")
    limit = "" if budget is None else f" of {budget:,} allowed"
    upper = f" to {most:,}" if most > total else ""
    own = " and ".join(name for name, count in judging.items() if count is None)
    beside = f", beside those of {own}" if own else ""
    over = f"in all {counted(seeds, 'seed')}"
    rows_in_all = f"{total:,}{upper} rows" if upper else counted(total, "row")
    sentences.append(f"  {over}: {rows_in_all}{limit}{beside}")
    if budget is not None and most > budget:
        sentences.append(
            "  That may be more than the budget: then the run stops, and a larger --rows goes on."
        )
    return sentences + _failed(trial, size) + _again(trial, size, plan)


def _chosen(plan: Plan) -> str:
    """What follows from the budget of rows, in a sentence."""
    config = plan.config
    again = {0: "", None: ", and replays as far as they are trusted"}.get(
        config.replays, f", each followed by {counted(config.replays or 0, 'replay')}"
    )
    learned = "tangents" in plan.methods or "secant" in plan.methods
    replayed = again if learned or config.replays else ""
    return (
        f"For {counted(config.rows, 'row')}: batches of {config.batch}, {counted(config.steps, 'step')}"
        f"{replayed}; validation every {counted(config.validate_every, 'step')}."
    )


def _line(name: str, plan: Cost | None, each: int, second: float | None) -> str:
    if plan is None:
        return f"  {name}: not known before the first step"
    rows = round(each * plan.evaluations)
    most, when = round(each * (plan.most or 0)), "where trust is lost" if plan.learns else "with every check"
    upper = f" (at most {most:,} {when})" if most > rows else ""
    queries = f", {counted(plan.queries, 'query')}" if plan.queries else ""
    took = ""
    if second is not None and rows:
        about = f"about {duration(rows * second)}" if rows * second >= 1 else "under 1 s"
        took = f", {about} in the box"
    took += ", plus what tangents take to learn" if took and plan.learns else ""
    return f"  {name}: {counted(rows, 'row')}{upper}{queries}{took}"


def _failed(trial: Trial, size: int) -> list[str]:
    """What is to be said of rows that failed in a trial on a batch of that size."""
    spent, back = trial.spent, trial.back
    if back is None or (back == size and not spent.rows_failed):
        return []
    why = f" The first cause: {spent.first_failure.rstrip('.')}." if spent.first_failure else ""
    if back == 0:
        return [f"  {NONE_BACK}.{why} Mend the box or the data before you train."]
    failed = spent.rows_failed + spent.rows_skipped
    rows = f", and {counted(failed, 'box row')} of all that were timed failed" if failed else ""
    return [f"  Rows fail: {back} of {counted(size, 'row')} in the first batch had a finite loss{rows}.{why}"]


def _again(trial: Trial, size: int, plan: Plan) -> list[str]:
    """Which methods ask a batch again without its failed rows, where there are such."""
    names = ", ".join(name for name in plan.methods if name in AGAIN)
    if not names or trial.back is None or not 0 < trial.back < size:
        return []
    return [f"  {names}: a batch with such a row runs twice, so up to twice the rows above."]


@dataclass(frozen=True)
class Trial:
    """A few evaluations of the objective on the first batch, for their time.

    Attributes:
        second: Seconds that a row takes; None where none was run.
        back: Losses of the batch that were finite in the last one; None where that is not known.
        spent: What the boxes counted.
    """

    second: float | None = None
    back: int | None = None
    spent: Ledger = field(default_factory=Ledger)


def _tried(problem: Problem) -> Trial:
    """The quickest of a few evaluations counts: for a second at most, or until a pool's workers are there."""
    boxes = list(problem.boxes.values())
    tally, best, begun = Tally(boxes), math.inf, perf_counter()
    first = tally.copy()
    limit = 10.0 if any(isinstance(part, Parallel) for box in boxes for part in stack(box)) else 1.0
    losses = None
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)  # the first weights of the first seed, most often
        network, batch = problem.network().to(problem.config.device), problem.training_batch(0, 0)
        for _ in range(TRIES):
            before, started = tally.copy(), perf_counter()
            losses = problem.objective(network, batch)
            passed = perf_counter() - started
            best = min(best, passed / (tally.since(before).rows_run or math.nan))  # NaN is never less
            if group.any_of(perf_counter() - begun > limit):  # their clocks differ, what they ask must not
                break
            limit = 1.0  # of two evaluations at least where the first one starts a pool
    back = int(losses.isfinite().sum()) if isinstance(losses, torch.Tensor) else None
    return Trial(None if best == math.inf else best, back, tally.since(first))
