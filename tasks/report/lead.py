"""The first sentences of a report: the outcome, computed from the figures whatever they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from blackbox.words import counted
from tasks.folder.result import TEST, VALIDATION, Result
from tasks.problem.report_contents import LOW
from tasks.report.findings import Findings
from tasks.report.method_scores import Score, apart, meaning, scores, told_apart, untouched

START, CUT, FIRST_ORDER = "none", "no-gradient", "first-order"  # roles of methods
LITTLE = 0.02  # of a figure: with one seed, smaller differences are not called better or worse
UNSURE = 0.2  # of a figure: with a larger standard error over test rows it is called uncertain


def sentences(result: Result, *, declared: bool = False) -> list[str]:
    """Describe the outcome: the best method, its cost, any harm, and whether the box's gradient is needed.

    `declared` says whether the problem's class says which way its first figure is better.
    """
    every = scores(result)
    finite = {score.method: score for score in every if math.isfinite(score.mean)}
    lines: list[str] = []
    if finite:
        lines += [*_best(finite, declared), *_unsure(result, finite), *_harm(finite), *_needed(finite)]
    elif any(score.metric and not score.under_way for score in every):  # else it is said of each
        lines.append(f"No method has a finite {every[0].metric} with every seed.")
    lines += [f"{score.method} is not applicable. {score.refused}" for score in every if score.refused]
    lines += [*untouched(result), *_not_finite(every), *_failed(result, every)]
    if len(result.seeds) == 1 and len(finite) > 1:
        lines.append(
            "This is one seed: how much of a difference between methods is the seed's own is not known."
        )
    return lines


def doubts(result: Result) -> list[str]:
    """Say what ± is in a table, and what its test rows leave open; for who sees the table alone."""
    finite = {score.method: score for score in scores(result) if math.isfinite(score.mean)}
    unsure = _unsure(result, finite)
    if unsure and _open(best := leading(list(finite.values()))):
        unsure = [_not_told(best, _untrained(finite)), *unsure]
    return [*filter(None, [meaning(result)]), *unsure]


def contradictions(facts: Findings) -> list[str]:
    """A sentence for each method that the first figure calls worse than the start, and validation better."""
    every = {score.method: score for score in scores(facts.result) if math.isfinite(score.mean)}
    start, curves, lines = _untrained(every), facts.curves("validation"), []
    for score in every.values():
        if start is None or score.loss <= start.loss:
            continue
        firsts = [
            float(curve.values[0]) for curve in curves.get(score.method, {}).values() if curve.steps[0] == 0
        ]
        validations = [row.extra.get("validation") for row in score.rows]
        ends = [float(value) for value in validations if isinstance(value, int | float)]
        if len(firsts) == len(ends) == len(score.rows) and fmean(ends) < fmean(firsts):
            lines.append(
                f"By its {score.metric} {score.method} is worse than {_named(start)}, yet its validation "
                f"fell from {fmean(firsts):.3g} to {fmean(ends):.3g}: the {score.metric} leaves out "
                "something that the objective has, such as a constraint, or rows are few."
            )
    return lines


def _best(finite: dict[str, Score], declared: bool) -> list[str]:
    ranked = sorted(finite.values(), key=lambda score: score.loss)
    best, start = leading(ranked), _untrained(finite)
    if len(ranked) == 1:
        return [f"{ranked[0].method}: {ranked[0].metric} {ranked[0]}{_on(ranked, ' on')}."]
    extreme = "highest" if ranked[0].rows[0].higher_is_better else "lowest"
    end = f"the {extreme} {ranked[0].metric}{_on(best, ' on')}"
    if _open(best):
        lines = [_not_told(best, start)]
        if start in best:
            return [*lines, *_taken(ranked[0], declared)]
    elif start is not None and start in best:
        better = f"No method is better than {_named(start)}, which has {end}, {start}."
        return [better, *_taken(ranked[0], declared)]
    else:
        comparison = f"; {_named(start)} has {start}" if start else ""
        lines = [f"{_all(best)} {'have' if best[1:] else 'has'} {end}, {best[0]}{comparison}."]
    lines += _taken(ranked[0], declared)
    rivals = [score for score in ranked if score.role != FIRST_ORDER and score is not start]
    first = in_role(FIRST_ORDER, finite.values())
    if first is not None and rivals:
        # who has a derivative would take it: the best of those that do without is what is looked for
        alike = leading(rivals)
        best_of_others, several = alike[0], len(alike) > 1
        cost = times = ""
        if best_of_others.box_rows and not several:
            cost = f", with {counted(round(best_of_others.box_rows), 'row')} in training"
            if first.box_rows:
                times = f", {best_of_others.box_rows / first.box_rows:.2g} times first order's"
        limit = ", as far as the test rows tell" if _open(alike) else ""
        lines.append(
            f"First order, with the box's derivative, has {first}; without it {_all(alike)} "
            f"{'are' if several else 'is'} the best{limit}, {best_of_others}{cost}{times}."
        )
    return lines


def _taken(score: Score, declared: bool) -> list[str]:
    """Say which figure is taken to be better, where neither its name nor the problem says so."""
    if declared or LOW.search(score.metric.lower()) or score.rows[0].higher_is_better:
        return []
    return [f"A lower {score.metric} is taken to be better; if it is not, say higher_is_better = True."]


def leading(finite: Sequence[Score]) -> list[Score]:
    """The scores with the best figure, or the same to the digits shown, or not told apart from the best."""
    best = min(finite, key=lambda score: score.loss)
    return [score for score in finite if _same(score, best) or not told_apart(score, best)]


def _same(one: Score, other: Score) -> bool:
    return one.loss == other.loss or one.plain == other.plain


def _open(best: Sequence[Score]) -> bool:
    """Say whether some of those that lead differ, but not by more than the test rows tell."""
    first = min(best, key=lambda score: score.loss)
    return any(not _same(score, first) for score in best)


def _on(every: Iterable[Score], before: str) -> str:
    """Words for the test rows of several scores: " on 8 test rows"; "" where they are not known."""
    counts = {score.on for score in every}
    number, _, noun = counts.pop().rpartition(" ") if len(counts) == 1 else ("", "", "")
    return f"{before} {number} test {noun}" if number else ""


def _not_told(best: Sequence[Score], start: Score | None) -> str:
    """Say that the test rows do not tell the leading methods apart."""
    rows, metric = _on(best, "").strip() or "the test rows", best[0].metric
    verb = "does" if rows.startswith("1 ") else "do"
    ranked = sorted(best, key=lambda score: score.loss)
    named = [f"{_named(score) if score is start else score.method} has {score}" for score in ranked]
    comparison = "" if start is None or start in best else f"; {_named(start)} has {start}"
    return f"By {metric} {rows} {verb} not tell these apart: {', '.join(named)}{comparison}."


def _unsure(result: Result, finite: dict[str, Score]) -> list[str]:
    """Say that few test rows leave open which method is the best, or how good it is, and what to do."""
    if not finite:
        return []
    best = leading(list(finite.values()))
    first = min(best, key=lambda score: score.loss)
    error, lines = first.standard_error, []
    if error is not None and error > UNSURE * abs(first.mean):
        size = f"{error / abs(first.mean):.0%} of it" if first.mean else f"{error:.2g}"
        lines.append(
            f"The {first.metric} of {first.method} is uncertain: its standard error{_on([first], ' over')} "
            f"is {size}."
        )
    elif not _open(best):
        return []
    more = "a larger --rows, of which the test takes one in thirty" if result.config.get("rows") else ""
    fresh = f'run = tasks.load(FOLDER); run.problem.losses(run.network("{first.method}"), rows)'
    ways = [more or "more test data", *([] if result.preset == "own" else [f"fresh rows: {fresh}"])]
    return [*lines, f"For a better figure take {', or test the saved network on '.join(ways)}."]


def in_role(role: str, scores: Iterable[Score]) -> Score | None:
    """The first that has the part of a shared method; None where there is none."""
    return next((score for score in scores if score.role == role), None)


def _all(scores: Sequence[Score]) -> str:
    """The methods in words: "a, b and c"."""
    *first_names, last = (score.method for score in scores)
    return f"{', '.join(first_names)} and {last}" if first_names else last


def _harm(finite: dict[str, Score]) -> list[str]:
    start = _untrained(finite)
    worse = [] if start is None else _worse(start, finite.values())
    listed = ", ".join(f"{score.method} ({score})" for score in worse)
    return [f"Worse than {_named(start)} ({start}): {listed}."] if start and listed else []


def _worse(start: Score, every: Iterable[Score]) -> list[Score]:
    return [score for score in every if score.loss > start.loss and told_apart(score, start)]


def _named(start: Score) -> str:
    return f"the untrained {'start' if start.method == START else start.method}"


def _untrained(finite: dict[str, Score]) -> Score | None:
    """Return the figure that trained methods are measured by: the start's, or a problem's substitute."""
    without_steps = (s for s in finite.values() if all(row.extra.get("steps") == 0 for row in s.rows))
    return in_role(START, finite.values()) or next(without_steps, None)


def _needed(finite: dict[str, Score]) -> list[str]:
    """Say whether the gradient through the box is needed, by a method trained with the gradient cut there."""
    cut, start = (in_role(role, finite.values()) for role in (CUT, START))
    rivals = [score for score in finite.values() if score.role not in (CUT, START)]
    if cut is None or not rivals:
        return []
    best = min(rivals, key=lambda score: score.loss)
    if start is not None and start.loss <= min(cut.loss, best.loss):
        return []  # neither has learned anything
    both = f"{cut.method} {cut}, {best.method} {best}"
    if cut.loss <= best.loss:
        no_use = "the gradient through the box shows no use here"
        return [f"No method does better than {cut.method} ({both}): {no_use}."]
    if _alike(cut, best):
        reason = "the spread over seeds" if len(cut.rows) > 1 else "chance with one seed"
        if not told_apart(cut, best):
            reason = f"chance{_on((cut, best), ' with')}"
        return [
            f"Whether the gradient through the box is needed here is open: {both}, a difference that is not "
            f"distinguishable from {reason}."
        ]
    return []


def _alike(one: Score, other: Score) -> bool:
    """Say whether two methods' difference, paired by seed or row, is within chance, or small."""
    if not told_apart(one, other):
        return True
    pairs = [(one.values[seed], other.values[seed]) for seed in one.values if seed in other.values]
    differences = [a - b for a, b in pairs]
    count = len(differences)
    if count < 2:
        return abs(one.mean - other.mean) <= LITTLE * max(abs(one.mean), abs(other.mean))
    return abs(fmean(differences)) <= apart(count) * stdev(differences) / math.sqrt(count)


def _not_finite(every: Sequence[Score]) -> list[str]:
    seeds_by_method = {
        score.method: [str(seed) for seed, value in score.values.items() if not math.isfinite(value)]
        for score in every
        if not (score.refused or score.under_way)
    }
    listed = ", ".join(
        f"{method} (seed {', '.join(seeds)})" for method, seeds in seeds_by_method.items() if seeds
    )
    if not listed:
        return []
    return [f"Not finite: the {every[0].metric} of {listed}. No mean is given where one is not."]


def _failed(result: Result, every: Sequence[Score]) -> list[str]:
    """Rows that failed: figures are means over the others, and what is missing there may be the worst."""
    run, failed = (
        sum(int(row.ledger.get(name) or 0) for row in result.table) for name in ("rows_run", "rows_failed")
    )
    left_out = sum(score.left_out for score in every)
    in_validation, in_test = (sum(score.failed(name) for score in every) for name in (VALIDATION, TEST))
    counts = {
        f"{failed:,} of the {counted(run, 'box row')} that were run in training": failed,
        f"{in_validation:,} in the validations that chose weights": in_validation,
        f"{left_out:,} in the test, which the figures leave out": left_out,
        f"{counted(in_test, 'box row')} in the test": 0 if left_out else in_test,
    }
    listed = ", ".join(words for words, count in counts.items() if count)
    return [f"Rows failed: {listed}. The tables have them by method."] if listed else []
