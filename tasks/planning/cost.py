"""What a plan will do and cost, in words, before it is gone through: rows, queries and time by method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blackbox.words import counted, duration
from tasks.planning.plan import Plan
from tasks.planning.trial import Trial
from tasks.problem.method import Cost
from tasks.rows.binding import Bound

QUICK = 0.02  # seconds of a row, below which a run is quicker with more rows than with replays
LONG, MANY = 60.0, 3.0  # seconds of those, and times as long as a run without them, from which on it is said
NONE_BACK = "No row of the first batch had a finite loss"  # how the line begins that says so


@dataclass(frozen=True)
class Rehearsal:
    """Seconds that a method with a learned model computes beside the boxes, as a few steps took them.

    Attributes:
        first: The first step, with what is learned before it and in it.
        step: Each step after that, without replays.
        replay: A replay.
        replays: How many follow a step, where it is trust that decides as many as are usual.
        networks: How many take all of these, each at a rate of its own.
        most_replays: How many may follow a step.
    """

    first: float
    step: float
    replay: float = 0.0
    replays: int = 0
    networks: int = 1
    most_replays: int = 0

    def seconds(self, steps: int) -> float:
        """Of a training of so many steps."""
        return self.without(steps) + steps * self._further(self.replays)

    def most(self, steps: int) -> float:
        """Of one in which as many replays follow each step as may."""
        return self.without(steps) + steps * self._further(max(self.replays, self.most_replays))

    def without(self, steps: int) -> float:
        """Of one without replays."""
        return self.first + (steps - 1) * self.step

    def _further(self, replays: int) -> float:
        """Seconds behind a step; all networks but one take its window too."""
        windows = self.networks - 1 if replays else 0
        return (self.networks * replays + windows) * self.replay


def sentences(plan: Plan, bound: Bound, rehearsed: Mapping[str, Rehearsal | None] | None = None) -> list[str]:
    """What a run will do and cost, in words.

    Args:
        plan: A plan that is settled.
        bound: Its problem in the run.
        rehearsed: What methods with a learned model compute beside the boxes, see `running.rehearsal`;
            None where that was not tried.
    """
    said = [_chosen(plan)] if plan.chosen else []
    said += plan.aside
    for method in plan.methods.values():
        said += method.says(bound.problem) if method.says else []
    rows, seeds, budget, trial = plan.rows, len(plan.seeds), plan.config.rows, plan.trial
    if rows is None:
        return [*said, *plan.instead]
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
    said.append(data if plan.problem.has_no_box() else boxes)
    said += [
        _line(name, cost, evaluation, trial.second) + _beside(name, cost, plan.config.steps, trial, rehearsed)
        for name, cost in rows.costs.items()
    ]
    for name, count in judging.items():
        if count != 0:
            own = "the problem's own, not known beforehand"
            if count is None and (once := rows.once[name]):
                own += f"; {counted(once, 'row')} if it asks for each row of its data once"
            known = own if count is None else counted(count, "row")
            said.append(f"  {name}, of each method: {known}")
    for name, count in (("making the data", rows.made), ("timing", trial.spent.rows_run)):
        if count:
            have = "has" if count == 1 else "have"
            said.append(f"  {name}: {counted(count, 'row')}, which {have} been run")
    if bound.ledger.answers.full:
        said.append("  Not all that made the data is kept: each `blackbox resume` runs the rest again.")
    limit = "" if budget is None else f" of {budget:,} allowed"
    upper = f" to {most:,}" if most > total else ""
    unknown = " and ".join(name for name, count in judging.items() if count is None)
    beside = f", beside those of {unknown}" if unknown else ""
    over = f"in all {counted(seeds, 'seed')}"
    rows_in_all = f"{total:,}{upper} rows" if upper else counted(total, "row")
    said.append(f"  {over}: {rows_in_all}{limit}{beside}")
    if budget is not None and most > budget:
        said.append("  That may be more than the budget: then the run stops, and a larger --rows goes on.")
    return said + _learning(plan, rehearsed) + _failed(trial, size) + _again(trial, size, rows.costs)


def _chosen(plan: Plan) -> str:
    """What follows from the budget of rows, in a sentence."""
    config = plan.config
    again = {0: "", None: ", and replays as far as they are trusted"}.get(
        config.replays, f", each followed by {counted(config.replays or 0, 'replay')}"
    )
    if again and config.rates:
        *others, last = (f"{rate:g}" for rate in config.rates)
        rates = f"{', '.join(others)} and {last}" if others else last
        again += f", at {rates} times the learning rate"
    trusted = any(method.replays for method in plan.methods.values())
    replayed = again if trusted or config.replays else ""
    return (
        f"For {counted(config.rows, 'row')}: batches of {config.batch}, {counted(config.steps, 'step')}"
        f"{replayed}; validation every {counted(config.validate_every, 'step')}."
    )


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
    """What a method with a learned model computes beside the box in so many steps."""
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
    """Where the time comes from that learned models take, or where it is said; and what would be quicker.

    Args:
        plan: A plan that is settled.
        rehearsed: See `sentences`.
    """
    assert plan.rows is not None
    config, second = plan.config, plan.trial.second
    names = [name for name, cost in plan.rows.costs.items() if cost is not None and cost.learns]
    known = {name: one for name in names if (one := (rehearsed or {}).get(name)) is not None}
    said = []
    if known:
        longest = max(known.values(), key=lambda rehearsal: rehearsal.seconds(config.steps))
        said.append(
            f"  The time beside the box, of {', '.join(known)}, is an estimate for a processor of its own, "
            f"from a few steps on the first batch that ran no row{_each(longest)}."
        )
        if second is not None and second < QUICK:
            said += _quicker(longest, config.steps, second, plan.rows.sizes.objective)
    if unknown := [name for name in names if name not in known]:
        before = "; --dry-run estimates it before" if rehearsed is None else ""
        said.append(
            f"  How long {', '.join(unknown)} will compute beside the box is said in the lines of progress"
            f"{before}."
        )
        replaying = any(plan.methods[name].replays for name in unknown) and config.replays != 0
        if second is not None and second < QUICK and replaying and rehearsed is None:
            said.append(
                "  Replays may be most of that. They save rows, which pays where one takes longer than some "
                f"{1e3 * QUICK:g} ms; --replays 0 leaves them out."
            )
    return said


def _each(rehearsal: Rehearsal) -> str:
    """What follows each step, in words."""
    number, most = rehearsal.replays, rehearsal.most_replays
    if not number:
        return ""
    rates = f", at {rehearsal.networks} rates" if rehearsal.networks > 1 else ""
    trusted = f"; what is trusted may be fewer, and {most:,} at most" if most > number else ""
    return f", each with {counted(number, 'replay')}{rates}{trusted}"


def _quicker(rehearsal: Rehearsal, steps: int, second: float, rows: int) -> list[str]:
    """That a box is too quick for replays, where these take far longer than all else.

    Args:
        rehearsal: Of the method that takes longest.
        steps: Of the training.
        second: That a row takes.
        rows: Box rows of a step.
    """
    without = rehearsal.without(steps) + steps * rows * second
    further = rehearsal.seconds(steps) - rehearsal.without(steps)
    if further < LONG or further < MANY * without:
        return []
    return [
        f"  {_about(further).capitalize()} of that is replays. They save rows, which pays where one takes "
        f"longer than some {1e3 * QUICK:g} ms: with --replays 0 as many steps take {_about(without)}, so "
        "that more --rows may be the quicker way."
    ]


def _failed(trial: Trial, size: int) -> list[str]:
    """What is to be said of rows that failed in a trial on a batch of that size."""
    spent, back = trial.spent, trial.back
    if back is None or (back == size and not spent.rows_failed):
        return []
    why = f" The first cause: {spent.first_failure.rstrip('.')}." if spent.first_failure else ""
    if back == 0 and spent.rows_run and not (spent.rows_failed or spent.rows_skipped):
        return [
            f"  {NONE_BACK}, though its {counted(spent.rows_run, 'box row')} came back with finite outputs: "
            "the objective made NaN or infinity of them. See its logarithms, roots and divisions."
        ]
    if back == 0:
        return [f"  {NONE_BACK}.{why} Mend the box or the data before you train."]
    failed = spent.rows_failed + spent.rows_skipped
    rows = f", and {counted(failed, 'box row')} of all that were timed failed" if failed else ""
    return [f"  Rows fail: {back} of {counted(size, 'row')} in the first batch had a finite loss{rows}.{why}"]


def _again(trial: Trial, size: int, costs: Mapping[str, Cost | None]) -> list[str]:
    """Which methods ask a batch again without its failed rows, where there are such."""
    names = ", ".join(name for name, cost in costs.items() if cost is not None and cost.again)
    if not names or trial.back is None or not 0 < trial.back < size:
        return []
    return [f"  {names}: a batch with such a row runs twice, so up to twice the rows above."]
