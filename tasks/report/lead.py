"""The first sentences of a report: what came out, computed from the figures whatever they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from tasks.report.findings import Score, scores
from tasks.runs.result import Result

START, CUT, FIRST_ORDER = "none", "no-gradient", "first-order"
TANGENTS = "tangents"
LITTLE = 0.02  # of a figure: with one seed, smaller differences are not called better or worse


def sentences(result: Result) -> list[str]:
    """What came out: the best method, its cost, what did harm, whether the box's gradient is needed."""
    every = scores(result)
    finite = {score.method: score for score in every if math.isfinite(score.mean)}
    told: list[str] = []
    if finite:
        told += [*_best(finite), *_harm(finite), *_needed(finite)]
    elif every:
        told.append(f"No method has a finite {every[0].metric} with every seed.")
    told += [*_not_finite(every), *_failed(result)]
    if len(result.seeds) == 1 and len(finite) > 1:
        told.append(
            "This is one seed: how much of a difference between methods is the seed's own is not known."
        )
    return told


def _best(finite: dict[str, Score]) -> list[str]:
    ranked = sorted(finite.values(), key=lambda score: score.loss)
    best, start = ranked[0], _untrained(finite)
    if len(ranked) == 1:
        return [f"{best.method}: {best.metric} {best}."]
    end = "highest" if best.rows[0].higher_is_better else "lowest"
    if best is start:
        known = "the start" if best.method == START else f"{best.method}, which is not trained"
        return [f"No method is better than {known}: {best.method} has the {end} {best.metric}, {best}."]
    equal = [score.method for score in ranked if score.loss == best.loss]
    if len(equal) > 1:
        told = f"{_and(equal)} have the same {end} {best.metric}, {best}"
    else:
        told = f"{best.method} has the {end} {best.metric}, {best}"
    name = (
        "the start" if start and start.method == START else f"{start.method}, not trained," if start else ""
    )
    told += f"; {name} has {start}." if start else "."
    found = [told]
    if best.method == FIRST_ORDER:
        # who has a derivative would take it: the best of those that do without is what is looked for
        others = [score for score in ranked if score.method != FIRST_ORDER and score is not start]
        if others:
            own = others[0]
            found.append(f"Without the box's derivative {own.method} is the best, {own}{_cost(own, best)}.")
    elif FIRST_ORDER in finite:
        first = finite[FIRST_ORDER]
        found.append(f"First order, with the box's derivative, has {first}{_cost(best, first, best.method)}.")
    second = ranked[len(equal)] if len(equal) < len(ranked) else None
    if second is not None and second is not start and _alike(best, second) and _several(best):
        found.append(
            f"The difference between {best.method} and {second.method} ({second}) is not distinguishable "
            "from the spread over seeds."
        )
    return found


def _cost(score: Score, first: Score, name: str = "") -> str:
    """The rows of a method, against those of first order."""
    if not score.box_rows:
        return ""
    times = f", {score.box_rows / first.box_rows:.2g} times first order's" if first.box_rows else ""
    start = f"; {name} took" if name else ", with"
    return f"{start} {score.box_rows:,.0f} rows in training{times}"


def _harm(finite: dict[str, Score]) -> list[str]:
    start = _untrained(finite)
    if start is None:
        return []
    worse = [score for score in finite.values() if score.loss > start.loss]
    if not worse:
        return []
    told = ", ".join(f"{score.method} ({score})" for score in worse)
    known = "the untrained start" if start.method == START else f"{start.method}, which is not trained"
    return [f"Worse than {known} ({start}): {told}."]


def _untrained(finite: dict[str, Score]) -> Score | None:
    """What the trained methods are measured by: the start, or what a problem has in its place."""
    without_steps = (s for s in finite.values() if all(row.extra.get("steps") == 0 for row in s.rows))
    return finite.get(START) or next(without_steps, None)


def _needed(finite: dict[str, Score]) -> list[str]:
    """Whether the gradient through the box is needed: one trained with the gradient cut there says it."""
    cut, with_gradient = finite.get(CUT), finite.get(TANGENTS)
    if cut is None or with_gradient is None:
        return []
    both = f"{CUT} {cut}, {TANGENTS} {with_gradient}"
    start = finite.get(START)
    if start is not None and cut.loss >= start.loss and with_gradient.loss >= start.loss:
        return []  # neither has learned anything
    if cut.loss <= with_gradient.loss:
        better = [
            score.method
            for score in finite.values()
            if score.method != START and score.loss < cut.loss and not _alike(cut, score)
        ]
        if better:
            return [
                f"{CUT} does as well as {TANGENTS} ({both}), though a gradient through the box helps here: "
                f"see {_and(better)}."
            ]
        return [
            f"{CUT} does as well as {TANGENTS} ({both}): the gradient through the box is not needed here."
        ]
    if _alike(cut, with_gradient):
        reason = "the spread over seeds" if _several(cut) else "chance with one seed"
        return [
            f"Whether the gradient through the box is needed here is open: {both}, a difference that is not "
            f"distinguishable from {reason}."
        ]
    return []


def _alike(one: Score, other: Score) -> bool:
    """Whether two methods' difference, paired by seed, is within two standard errors; by size with one."""
    pairs = [(one.values[seed], other.values[seed]) for seed in one.values if seed in other.values]
    differences = [a - b for a, b in pairs]
    if len(differences) < 2:
        return abs(one.mean - other.mean) <= LITTLE * max(abs(one.mean), abs(other.mean))
    return abs(fmean(differences)) <= 2 * stdev(differences) / math.sqrt(len(differences))


def _several(score: Score) -> bool:
    return len(score.rows) > 1


def _not_finite(every: Sequence[Score]) -> list[str]:
    told = []
    for score in every:
        lost = [seed for seed, value in score.values.items() if not math.isfinite(value)]
        if lost:
            several = f" with seed {_and([str(seed) for seed in lost])}" if _several(score) else ""
            told.append(f"{score.method}{several}")
    if not told:
        return []
    return [f"Not finite: the {every[0].metric} of {', '.join(told)}. No mean is given where one is not."]


def _failed(result: Result) -> list[str]:
    asked, failed = (
        sum(int(row.ledger.get(name) or 0) for row in result.table) for name in ("rows_asked", "rows_failed")
    )
    return [f"In training {failed:,} of {asked:,} box rows failed; the causes are below."] if failed else []


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
