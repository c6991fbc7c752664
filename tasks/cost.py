"""What a run will cost, before it starts: rows, queries and time by method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from blackbox import BlackBoxFunction, Ledger, Parallel
from blackbox.calls import intercepted
from blackbox.words import counted
from tasks.errors import ConfigurationError
from tasks.method import Cost, Method
from tasks.problem import Problem
from tasks.progress import duration
from tasks.tally import Tally, stack
from tasks.workers import group
from zo.batches import count_rows, map_tensors

NONE_BACK = "No row of the first batch had a finite loss"  # how the line begins that says so
TRIES = 5  # evaluations of the objective, of which the quickest counts: the first one warms up


def lines(
    problem: Problem,
    methods: Mapping[str, Method],
    seeds: int,
    *,
    timed: bool,
    before: Ledger | None = None,
) -> list[str]:
    """What the run will cost, in words; refuses one that cannot end within its budget.

    Args:
        problem: With its settings; its boxes are asked for one batch's rows where `timed` says so.
        methods: That will be trained.
        seeds: How many trainings of each.
        timed: Whether to run a batch's rows to see how long they take.
        before: What the boxes had counted when the run began; what came since was to make the data. As they
            have counted now, if None.

    Raises:
        ConfigurationError: More rows will be run than the budget has; none was run, but for the data.
    """
    told = problem.cost(seeds)
    if told is not None:
        return ["Cost:", *(f"  {line}" for line in told)]
    tally = Tally(list(problem.boxes.values()))
    before = tally.copy() if before is None else before
    each = rows_of_objective(problem)
    if isinstance(each, Exception):
        raised = " ".join(f"{type(each).__name__}: {each}".split()).rstrip(".")
        return [
            f"Cost: not known before the first step: the objective, on zeros from its box, raised {raised}."
        ]
    made = rows_of_data(problem, tally.since(before))
    plan = planned(problem, methods, each)
    size, rows, validation, test = plan.size, plan.rows, plan.validation, plan.test
    total, budget = made + seeds * plan.least, problem.config.rows
    if budget is not None and total > budget:
        told = ", ".join(f"{name} {count:,}" for name, count in rows.items() if count)
        was = "was" if made == 1 else "were"
        run = f"{counted(made, 'row')} {was} run, to make the data." if made else "No row was run."
        raise ConfigurationError(
            f"rows: expected a run within its budget of {counted(budget, 'row')}, got a plan of at least "
            f"{total:,} in {counted(seeds, 'seed')} of: {told}; validation and test {plan.judging:,}. {run} "
            "Raise --rows, or lower --steps, --batch, or the methods' settings."
        )
    most = total + seeds * plan.more
    # the rows that are timed count too, and must not be those that the end of the run needs
    spare = budget is None or total + TRIES * each <= budget
    second, back, timing = None, None, tally.copy()
    if timed and spare and problem.boxes:
        second, back = _seconds_per_row(problem)
    tried = tally.since(timing)
    for_timing = tried.rows_run
    total, most = total + for_timing, most + for_timing
    speed = "; answers came from a cache, so their time is not known" if tried.rows_cached else ""
    speed = speed if second is None else f", {1e3 * second:.3g} ms a row"
    told = [
        f"Cost: one evaluation of the objective on {counted(size, 'row')} of data runs "
        f"{counted(each, 'box row')}{speed}."
    ]
    if not problem.boxes:
        told = [f"Cost: without a black box rows are those of the data, {each:,} for each query."]
    told += [_line(name, plan.costs[name], each, second) for name in methods]
    for name, count in {"validation": validation, "test": test}.items():
        if count != 0:
            known = "the problem's own, not known beforehand" if count is None else counted(count, "row")
            told.append(f"  {name}, of each method: {known}")
    for name, count in (("making the data", made), ("timing", for_timing)):
        if count:
            have = "has" if count == 1 else "have"
            told.append(f"  {name}: {counted(count, 'row')}, which {have} been run")
    if problem.making.answers.full:
        told.append("  Not all that made the data is kept: each `blackbox resume` runs the rest again.")
    limit = "" if budget is None else f" of {budget:,} allowed"
    upper = f" to {most:,}" if most > total else ""
    own = " and ".join(
        name for name, count in {"validation": validation, "test": test}.items() if count is None
    )
    beside = f", beside those of {own}" if own else ""
    over = f"in all {counted(seeds, 'seed')}"
    rows_in_all = f"{total:,}{upper} rows" if upper else counted(total, "row")
    told.append(f"  {over}: {rows_in_all}{limit}{beside}")
    if budget is not None and most > budget:
        told.append("  That may be more than the budget: then the run stops, and a larger --rows goes on.")
    return told + _failed(tried, size, back)


@dataclass(frozen=True)
class Plan:
    """Rows of a training of each method, as the settings say.

    Attributes:
        size: Rows of a batch.
        costs: By method; None where that is not known.
        rows: Box rows of steps, by method where known: the least that they take.
        most: The most, where checks are in doubt or trust is lost.
        validation: Box rows of all validations of a method; None for a problem's own.
        test: Box rows of the test of a method; None for a problem's own.
        judging: Box rows of validations and tests of all methods, as far as they are known.
    """

    size: int
    costs: Mapping[str, Cost | None]
    rows: Mapping[str, int]
    most: Mapping[str, int]
    validation: int | None
    test: int | None
    judging: int

    @property
    def least(self) -> int:
        """Box rows with one seed: of steps, validations and tests."""
        return sum(self.rows.values()) + self.judging

    @property
    def more(self) -> int:
        """Box rows that the steps may take beyond the least."""
        return sum(self.most.values()) - sum(self.rows.values())

    @property
    def with_checks(self) -> int:
        """Box rows with one seed where every check is asked, and trust in tangents is not lost."""
        learned = {name for name, cost in self.costs.items() if cost is not None and cost.learns}
        checks = sum(most - self.rows[name] for name, most in self.most.items() if name not in learned)
        return self.least + checks


def planned(problem: Problem, methods: Mapping[str, Method], each: int, *, supposing: bool = False) -> Plan:
    """What the settings ask for.

    Args:
        problem: With its settings.
        methods: That will be trained.
        each: Box rows of one evaluation of the objective on a batch, see `rows_of_objective`.
        supposing: Whether a problem's own validation or test is supposed to take each row of its data once,
            as the objective does.
    """
    size = count_rows(_first_batch(problem))
    costs = {
        name: None if method.cost is None else method.cost(problem, problem.config.steps)
        for name, method in methods.items()
    }
    known = {name: cost for name, cost in costs.items() if cost is not None}
    rows = {name: round(each * cost.evaluations) for name, cost in known.items()}
    most = {name: round(each * (cost.most or cost.evaluations)) for name, cost in known.items()}
    validated = sum(cost is None or cost.evaluations > 0 for cost in costs.values())
    validation, test = (
        None if found is None else int(each / size * found) for found in _judged(problem, supposing)
    )
    judging = validated * (validation or 0) + len(methods) * (test or 0)
    return Plan(size, costs, rows, most, validation, test, judging)


def rows_of_data(problem: Problem, spent: Ledger) -> int:
    """Rows that were run to make the data, in all processes, which all ask here.

    Args:
        problem: With its boxes.
        spent: What this process counted since the run began.
    """
    making = problem.making
    kept = making.answers.recalled.rows_run + (making.elsewhere if group.rank() == 0 else 0)
    (made,) = group.total(spent.rows_run + kept)  # all processes decide alike
    return made


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


def _failed(tried: Ledger, size: int, back: int | None) -> list[str]:
    """What is to be said of rows that failed in the evaluations that were timed.

    Args:
        tried: What the boxes counted in them.
        size: Rows of the batch.
        back: How many of them had a finite loss in the last one; None if none was evaluated.
    """
    if back is None or (back == size and not tried.rows_failed):
        return []
    why = f" The first cause: {tried.first_failure.rstrip('.')}." if tried.first_failure else ""
    if back == 0:
        return [f"  {NONE_BACK}.{why} Mend the box or the data before you train."]
    failed = tried.rows_failed + tried.rows_skipped
    rows = f", and {counted(failed, 'box row')} of all that were timed failed" if failed else ""
    return [f"  Rows fail: {back} of {counted(size, 'row')} in the first batch had a finite loss{rows}.{why}"]


def rows_of_objective(problem: Problem) -> int | Exception:
    """Box rows of one evaluation of the objective on a training batch, found without running any.

    The boxes answer with zeros; what was raised, where the objective or the box's shapes cannot do that.
    Without boxes they are the batch's own.
    """
    if not problem.boxes:
        return count_rows(_first_batch(problem))
    rows = 0

    def answer(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
        nonlocal rows
        first = arrays[0]
        leading = tuple(first.shape[: first.ndim - len(box.inputs[0].shape)])
        rows += int(torch.Size(leading).numel())
        found = [
            torch.zeros(*leading, *spec.shape, dtype=first.dtype, device=first.device) for spec in box.outputs
        ]
        return found[0] if len(found) == 1 else tuple(found)

    with torch.random.fork_rng(devices=()):  # data may ask the boxes, which here still answer themselves
        network, batch = problem.network().to(problem.config.device), _first_batch(problem)
    count_rows(batch)  # refuses what is no batch
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad(), intercepted(answer):
            problem.objective(network, batch)
    except Exception as error:  # whatever the objective does with zeros; a true fault shows in the first step
        return error
    return rows


def _first_batch(problem: Problem) -> Any:  # noqa: ANN401
    device = problem.config.device
    return map_tensors(lambda tensor: tensor.to(device), problem.data.train(0, 0))


def _seconds_per_row(problem: Problem) -> tuple[float | None, int | None]:
    """How long a row that is run takes, or None; and how many losses of the batch were finite, if known.

    It is the quickest of a few evaluations of the objective, for a second at most; of two at least where the
    first one starts a pool's workers within ten seconds.
    """
    boxes = list(problem.boxes.values())
    tally, best, begun = Tally(boxes), math.inf, perf_counter()
    limit = 10.0 if any(isinstance(part, Parallel) for box in boxes for part in stack(box)) else 1.0
    losses = None
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)  # the first weights of the first seed, most often
        network, batch = problem.network().to(problem.config.device), _first_batch(problem)
        for _ in range(TRIES):
            before, started = tally.copy(), perf_counter()
            losses = problem.objective(network, batch)
            passed = perf_counter() - started
            best = min(best, passed / (tally.since(before).rows_run or math.nan))  # NaN is never less
            if group.any_of(perf_counter() - begun > limit):  # their clocks differ, what they ask must not
                break
            limit = 1.0
    back = int(losses.isfinite().sum()) if isinstance(losses, torch.Tensor) else None
    return None if best == math.inf else best, back


def _judged(problem: Problem, supposing: bool) -> tuple[int | None, int | None]:
    """Rows of data that a method's validations and its test take; None for a problem's own, see `planned`."""
    config, kind = problem.config, type(problem)
    validations = 1 + -(-config.steps // config.validate_every)
    validation, test = (
        0 if rows is None else count_rows(rows) for rows in (problem.data.validation, problem.data.test)
    )
    validates = kind.validate is Problem.validate or (supposing and validation)
    tests = (kind.evaluate is Problem.evaluate and kind.judge is Problem.judge) or (supposing and test)
    return validations * validation if validates else None, test if tests else None
