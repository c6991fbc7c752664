"""A plan and its cost in words, before it is carried out: rows, queries and time by method."""

from __future__ import annotations

from collections.abc import Mapping

from blackbox.words import counted, duration
from tasks.planning.plan import POPULATION, Plan
from tasks.planning.trial import Rehearsal, Trial
from tasks.problem.method import Cost
from tasks.rows.binding import Bound
from tasks.rows.budget_parts import judges_by_windows
from zo.batches import count_rows

NONE_BACK = "No row of the first batch had a finite loss"  # how the line begins that says so


def sentences(plan: Plan, bound: Bound, *, dry: bool = False) -> list[str]:
    """Describe a run and its cost: three lines where it follows from a budget, else a table.

    Args:
        plan: A plan that is settled.
        bound: Its problem in the run.
        dry: Whether it is not made, and the table is wanted in any case.
    """
    lines, has_costs = [], plan.rows is not None and None not in plan.rows.costs.values()
    if plan.chosen:
        lines += [_chosen(plan), *([_rows_of(plan, bound), _time_of(plan)] if has_costs else [])]
    lines += plan.aside
    if len(lines) > 2 and plan.rows is not None and not dry:
        size = plan.rows.sizes.batch
        return lines + _failed(plan.trial, size) + _again(plan.trial, size, plan.rows.costs)
    rehearsed = plan.work if plan.work or dry else None
    for method in plan.methods.values():
        lines += method.says(bound.problem) if method.says else []
    rows, seeds, budget, trial = plan.rows, len(plan.seeds), plan.config.rows, plan.trial
    if rows is None:
        return [*lines, *plan.instead]
    size, evaluation = rows.sizes.batch, rows.sizes.objective
    judging = {"validation": rows.validation, "test": rows.test}
    total, most = plan.total, plan.total + seeds * rows.more
    speed = "; answers came from a cache, so their time is not known" if trial.spent.rows_cached else ""
    if trial.second is not None:
        quick = trial.second < 1
        speed = f", {1e3 * trial.second:.3g} ms a row" if quick else f", {trial.second:.3g} s a row"
    data = f"Cost: without a black box rows are those of the data, {evaluation:,} for each query."
    boxes = (
        f"Cost: one evaluation of the objective on {counted(size, 'row')} of data runs "
        f"{counted(evaluation, 'box row')}{speed}."
    )
    lines.append(data if plan.problem.has_no_box() else boxes)
    lines += [
        _line(name, cost, evaluation, trial.second) + _beside(name, cost, plan.config.steps, trial, rehearsed)
        for name, cost in rows.costs.items()
    ]
    for name, count in judging.items():
        if count != 0:
            remark = "the problem's own, not known beforehand"
            if count is None and (once := rows.once[name]):
                remark += f"; {counted(once, 'row')} if it asks for each row of its data once"
            amount = remark if count is None else counted(count, "row")
            lines.append(f"  {name}, of each method: {amount}")
    for name, count in (("making the data", rows.made), ("timing", trial.aside)):
        if count:
            have = "has" if count == 1 else "have"
            lines.append(f"  {name}: {counted(count, 'row')}, which {have} been run")
    if bound.ledger.answers.full:
        lines.append("  Not all that made the data is kept: each `blackbox resume` runs the rest again.")
    limit = "" if budget is None else f" of {budget:,} allowed"
    upper = f" to {most:,}" if most > total else ""
    unknown = " and ".join(name for name, count in judging.items() if count is None)
    addition = f", beside those of {unknown}" if unknown else ""
    over = f"in all {counted(seeds, 'seed')}"
    rows_in_all = f"{total:,}{upper} rows" if upper else counted(total, "row")
    lines.append(f"  {over}: {rows_in_all}{limit}{addition}")
    if budget is not None and most > budget:
        lines.append("  That may be more than the budget: then the run stops, and a larger --rows goes on.")
    return lines + _learning(plan, rehearsed) + _failed(trial, size) + _again(trial, size, rows.costs)


def _chosen(plan: Plan) -> str:
    """Describe the settings that follow from the budget, in a sentence."""
    config = plan.config
    limits = [counted(config.rows, "row")] if config.rows is not None else []
    if (minutes := config.minutes) is not None:
        limits.append("a minute" if minutes == 1 else f"{minutes:g} minutes")
    again = {0: "", None: ", replays as far as they are trusted"}.get(
        config.replays, f", each followed by {counted(config.replays or 0, 'replay')}"
    )
    if again and POPULATION in plan.methods and len(config.rates) > 1:
        *first_rates, last = (f"{rate:g}" for rate in config.rates)
        rates = f"{', '.join(first_rates)} and {last}" if first_rates else last
        again += f", at {rates} times the learning rate"
    if plan.chosen.get("surrogate") is False and POPULATION in plan.methods:
        again += ", without a surrogate, which would leave few steps"
    trusted = any(method.replays for method in plan.methods.values())
    replayed = again if trusted or config.replays else ""
    free = judges_by_windows(plan.problem, plan.chosen)
    validated = "each batch before its step" if free else "data of its own"
    return (
        f"For {' and '.join(limits)}: {', '.join(plan.methods)}; batches of {config.batch}, "
        f"{counted(config.steps, 'step')}{replayed}; "
        f"validation every {counted(config.validate_every, 'step')} by {validated}."
    )


def _rows_of(plan: Plan, bound: Bound) -> str:
    """The rows that follow from a budget, in a sentence."""
    assert plan.rows is not None
    rows, seeds, test = plan.rows, len(plan.seeds), bound.problem.data.test
    parts = [f"{seeds * sum(rows.checked.values()):,} in training"]
    if rows.once["validation"]:
        parts.append(f"{counted(rows.once['validation'], 'row')} in each validation of a training")
    if test is not None:
        tests = seeds * len(rows.costs) * rows.once["test"]
        parts.append(f"{tests:,} in tests, each on {counted(count_rows(test), 'row')} of the test data")
    further_rows = (("for the data", rows.made), ("timed", plan.trial.aside))
    parts += [f"{count:,} {name}" for name, count in further_rows if count]
    return f"Rows: {'; '.join(parts)}."


def _time_of(plan: Plan) -> str:
    """The time that a run takes as far as the first batch says it, in a sentence."""
    assert plan.rows is not None
    config, evaluation, rows = plan.config, plan.trial.evaluation, plan.rows
    if evaluation is None:
        return "Time: not known, as no row of this process was run to see how long it takes."
    boxes = {name: cost.evaluations * evaluation for name, cost in rows.costs.items() if cost is not None}
    computing = {name: work.seconds(config.steps) for name, work in plan.work.items() if work is not None}
    test = evaluation * rows.once["test"] / rows.sizes.objective
    total = len(plan.seeds) * (sum(boxes.values()) + sum(computing.values()) + len(rows.costs) * test)
    step_time = _short(sum(computing.values()) / config.steps)
    a_step = f", {step_time} of computing beside each step" if computing else ""
    first = (sum(boxes.values()) + sum(computing.values())) * min(1.0, config.validate_every / config.steps)
    return (
        f"Time: {_about(total)}, {_short(evaluation / rows.sizes.objective)} a row{a_step}; "
        f"the first figure in {_about(test)}, the first of a training in "
        f"{_about(len(rows.costs) * test + first)}."
    )


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _line(name: str, cost: Cost | None, evaluation: int, second: float | None) -> str:
    if cost is None:
        return f"  {name}: not known before the first step"
    rows = round(evaluation * cost.evaluations)
    most = round(evaluation * (cost.most or 0))
    when = "where trust is lost" if cost.learns else "with every check"
    if cost.first:
        when += f", up to {round(evaluation * cost.first):,} of them at the first step"
    upper = f" (at most {most:,} {when})" if most > rows else ""
    queries = f", {counted(cost.queries, 'query')}" if cost.queries else ""
    took = ""
    if second is not None and rows:
        took = f", {_about(rows * second)} in the box"
    return f"  {name}: {counted(rows, 'row')}{upper}{queries}{took}"


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else "under 1 s"


def _beside(
    name: str, cost: Cost | None, steps: int, trial: Trial, rehearsed: Mapping[str, Rehearsal | None] | None
) -> str:
    """Describe the time that a method with a learned model computes beside the box in so many steps."""
    if cost is None or not cost.learns:
        return ""
    if rehearsed is None:
        return ", plus what it takes to learn" if trial.second is not None else ""
    rehearsal = rehearsed.get(name)
    if rehearsal is None:
        return ""
    most = _about(rehearsal.most(steps))
    upper = "" if most == _about(rehearsal.seconds(steps)) else f", {most.replace('about', 'up to')}"
    return f", and {_about(rehearsal.seconds(steps))} beside it{upper}"


def _learning(plan: Plan, rehearsed: Mapping[str, Rehearsal | None] | None) -> list[str]:
    """Say where the time of learned models comes from, or where to find it."""
    assert plan.rows is not None
    names = [name for name, cost in plan.rows.costs.items() if cost is not None and cost.learns]
    timed = [name for name in names if (rehearsed or {}).get(name) is not None]
    lines = []
    if timed:
        lines.append(
            f"  The time beside the box, of {', '.join(timed)}, is an estimate for a processor of its own, "
            "from a few steps on the first batch that ran no row."
        )
    if unknown := [name for name in names if name not in timed]:
        hint = "; --dry-run estimates it before" if rehearsed is None else ""
        lines.append(
            f"  How long {', '.join(unknown)} will compute beside the box is said in the lines of progress"
            f"{hint}."
        )
    return lines


def _failed(trial: Trial, size: int) -> list[str]:
    """Describe the rows that failed in a trial on a batch of that size."""
    ledger, back = trial.spent, trial.back
    if back is None or (back == size and not ledger.rows_failed):
        return []
    why = f" The first cause: {ledger.first_failure.rstrip('.')}." if ledger.first_failure else ""
    if back == 0 and ledger.rows_run and not (ledger.rows_failed or ledger.rows_skipped):
        return [
            f"  {NONE_BACK}, though its {counted(ledger.rows_run, 'box row')} came back with finite outputs: "
            "the objective made NaN or infinity of them. See its logarithms, roots and divisions."
        ]
    if back == 0:
        return [f"  {NONE_BACK}.{why} Mend the box or the data before you train."]
    failed = ledger.rows_failed + ledger.rows_skipped
    rows = f", and {counted(failed, 'box row')} of all that were timed failed" if failed else ""
    return [f"  Rows fail: {back} of {counted(size, 'row')} in the first batch had a finite loss{rows}.{why}"]


def _again(trial: Trial, size: int, costs: Mapping[str, Cost | None]) -> list[str]:
    """Name the methods that ask a batch again without its failed rows, where there are such."""
    names = ", ".join(name for name, cost in costs.items() if cost is not None and cost.again)
    if not names or trial.back is None or not 0 < trial.back < size:
        return []
    return [f"  {names}: a batch with such a row runs twice, so up to twice the rows above."]
