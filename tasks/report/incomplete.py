"""A run whose table lacks lines: the comparable part of it, and sentences on what is missing or under way."""

from __future__ import annotations

from dataclasses import replace
from shlex import quote

from tasks.folder.result import UNDER_WAY, Result
from tasks.folder.run import Run, stage_name
from tasks.folder.under_way import AT_THE_END, measured
from tasks.report.method_scores import Score


def comparable(result: Result) -> Result:
    """The lines whose means are over the same seeds, with these seeds.

    Of a finished run these are the methods that have all seeds of the table. Of any other they are the seeds
    that have all methods which the first one has by now; a method of which all there is is under way has its
    line too.
    """
    if len(under_way := [row for row in result.table if UNDER_WAY in row.extra]):
        result = measured(result)
        if not result.table:
            return replace(result, table=tuple(under_way))
        part = comparable(result)
        others = {row.method for row in result.table}
        added = [row for row in under_way if row.seed in part.seeds and row.method not in others]
        return replace(part, table=(*part.table, *added))
    methods = {seed: {row.method for row in result.table if row.seed == seed} for seed in result.seeds}
    methods = {seed: names for seed, names in methods.items() if names}  # a loop of one's own may lack some
    if result.finished:
        whole = set.intersection(*methods.values())
        rows, seeds = [row for row in result.table if row.method in whole], tuple(methods)
    else:
        first = next(iter(methods.values()))
        seeds = tuple(seed for seed, names in methods.items() if names >= first)
        rows = [row for row in result.table if row.seed in seeds]
    return replace(result, table=tuple(rows), seeds=seeds) if rows else result


def sentences(run: Run, result: Result) -> list[str]:
    """Describe the missing part of a run, and lines beside the `comparable` ones."""
    lines, several = list[str](), len(run.seeds) > 1
    under_way = [row for row in result.table if UNDER_WAY in row.extra]
    result = measured(result)
    missing = ", ".join(_missing(run, result))
    if not result.finished:
        lines.append(
            f"This run is not finished; `blackbox resume {quote(str(run.path))}` goes on with it."
            f"{missing and f' What is missing: {missing}.'}"
        )
        for row in under_way:
            seed, words = f", seed {row.seed}," if several else "", str(row.extra[UNDER_WAY])
            lines.append(f"{row.method}{seed} is under way, and was not tested: {words}.")
            if run.problem and AT_THE_END not in words:
                call = f"{row.method!r}, {row.seed}" if row.seed else repr(row.method)
                lines.append(f"Its network can be loaded: tasks.load({str(run.path)!r}).network({call}).")
    elif missing:
        lines.append(f"Left out when the run was resumed (--without): {missing}.")
    rows = comparable(result).table if result.table else ()
    aside = [score for row in result.table if row not in rows for score in [Score([row])]]
    if aside and several:
        # without ±, whose sense in the table depends on how many seeds are there
        listed = ", ".join(f"{score.method} (seed {score.rows[0].seed}) {_figure(score)}" for score in aside)
        lines.append(f"In no table, since other seeds or methods lack them: {listed}.")
    return lines


def _figure(score: Score) -> str:
    if score.refused:
        return str(score)
    unit, rows = score.rows[0].unit, f" ({score.on})" if score.on else ""
    return f"{score.plain}{unit and f' {unit}'}{rows}"


def _missing(run: Run, result: Result) -> list[str]:
    """The trainings without a line, each with its seed where there are several, and with the steps done."""
    methods, missing = run.config.get("methods"), result.left_out
    if not result.finished:
        every = [(str(method), seed) for method in methods or () for seed in run.seeds]
        lines = {(row.method, row.seed) for row in result.table}
        missing = [stage for stage in every if stage not in lines]
    steps = {line["stage"]: line["step"] for line in run.metrics()}
    listed = []
    for method, seed in missing:
        steps_done = steps.get(stage_name(seed, method), 0)
        parts = [f"seed {seed}"] * (len(run.seeds) > 1) + [f"{steps_done:,} steps done"] * (steps_done > 0)
        listed.append(f"{method} ({', '.join(parts)})" if parts else method)
    return listed
