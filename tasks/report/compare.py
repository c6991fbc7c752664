"""`blackbox compare`: runs side by side: settings that differ, figures, one plot; no code needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from tasks.errors import ConfigurationError
from tasks.folder.machine import changes
from tasks.folder.result import Result
from tasks.folder.run import Run
from tasks.problem import problems
from tasks.report import html_report, incomplete, pictures, plots
from tasks.report.findings import Findings
from tasks.report.html_report import Block, Figure, Heading, Paragraph, Table, flat, in_words
from tasks.report.lead import START, contradictions
from tasks.report.method_scores import Score, scores

if TYPE_CHECKING:
    import pandas

Sides = Mapping[str, Findings]  # runs by letter, for their folders' names are long


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side: a column for each run, by its letter.

    `figures` have a line for each method, for two runs of one problem with their ratio; so have the `rows`
    that training took. `settings` are those that differ.
    """

    runs: pandas.DataFrame
    sentences: list[str]
    figures: pandas.DataFrame
    rows: pandas.DataFrame
    settings: pandas.DataFrame
    page: Path
    caption: str


@pictures.own_settings()
def compare(folders: Sequence[Path], page: Path) -> Comparison:
    """Set runs side by side and write a page of it, with its plot as PNG beside it.

    Raises:
        ConfigurationError: Fewer than two different folders are given.
        RunFolderError: One of them is no run, or no method of it is finished.
    """
    import pandas

    paths = [Path(folder).resolve() for folder in folders]
    if not 2 <= len(set(paths)) == len(paths) <= len(ascii_uppercase):
        came = ", ".join(map(str, folders)) or "none"
        raise ConfigurationError(
            f"compare: expected the folders of two different runs or more, got {came}. Name each once."
        )
    opened = {name: Run.open(path) for name, path in zip(ascii_uppercase, paths, strict=False)}
    results = {name: Result.read(run.path, so_far=True) for name, run in opened.items()}
    sides = {name: Findings(run, incomplete.comparable(results[name])) for name, run in opened.items()}
    runs = pandas.DataFrame(
        {
            "run": name,
            "folder": str(side.run.path),
            "problem": f"{side.run.task}, {side.run.preset}",
            "seeds": in_words(side.seeds),
            "finished": side.result.finished or "no",
        }
        for name, side in sides.items()
    )
    alike = len({side.run.task for side in sides.values()}) == 1  # only such figures are on one scale
    missing = {name: incomplete.sentences(run, results[name]) for name, run in opened.items()}
    lines = [f"{name}: {sentence}" for name, sentences in missing.items() for sentence in sentences]
    lines += _sentences(sides, alike)
    figures, rows, caption = _figures(sides, alike)
    every = {name: {"preset": side.run.preset, **flat(side.run.config)} for name, side in sides.items()}
    settings = pandas.DataFrame(every, dtype=object).fillna("-")
    settings = settings[settings.nunique(axis=1) > 1].rename_axis("setting").reset_index()
    blocks: list[Block] = [Table(runs, prose=True), Table(figures, caption=caption)]
    if not rows.empty:
        blocks.append(Table(rows, caption="Rows that training took, mean over seeds."))
    if alike:
        kinds = filter(None, (problems.shipped(side.run.problem) for side in sides.values()))
        with pictures.palette({name: look for kind in kinds for name, look in kind.looks.items()}):
            blocks += _plot(sides, page.with_suffix(".png"))
    blocks.append(Heading("Settings"))
    if settings.empty:
        blocks.append(Paragraph("All settings are the same."))
    else:
        blocks.append(Table(settings, prose=True, caption="Settings that differ."))
    html_report.write(page, f"{len(sides)} runs compared", lines, blocks)
    return Comparison(runs, lines, figures, rows, settings, page, caption)


def _sentences(sides: Sides, alike: bool) -> list[str]:
    lines = []
    if not alike:
        of_tasks = ", ".join(f"{name} ({side.run.task})" for name, side in sides.items())
        lines.append(
            f"These are runs of different problems, whose figures say nothing about each other: {of_tasks}."
        )
    lines += [
        f"{name}: {line}" for name, side in sides.items() for line in (*side.gaps(), *contradictions(side))
    ]
    (first, one), *more_sides = sides.items()
    for name, side in more_sides:
        if side.seeds != one.seeds:
            seeds = in_words(one.seeds), in_words(side.seeds)
            lines.append(f"The seeds differ: {first} has {seeds[0]}, {name} {seeds[1]}.")
        first_values, now = _start(one), _start(side)
        same = (
            math.isclose(first_values[seed], now[seed], rel_tol=1e-4) for seed in first_values.keys() & now
        )
        if alike and not all(same):
            lines.append(
                f"{first} and {name} differ already in {START}, which is not trained: a setting changes what "
                "is judged, so their figures are not on one scale."
            )
        versions = changes(one.run.versions, side.run.versions)
        if versions:
            lines.append(f"The versions differ, {first} -> {name}: {versions}.")
        if one.result.machine != side.result.machine:
            lines.append(f"{first} and {name} ran on different machines: do not compare their times.")
    return lines


def _start(side: Findings) -> dict[int, float]:
    """The untrained network's figure by seed."""
    every = side.result.table
    return {row.seed: row.value for row in every if row.method == START and row.value is not None}


def _figures(sides: Sides, alike: bool) -> tuple[pandas.DataFrame, pandas.DataFrame, str]:
    """Figures and rows, a line for each method and a column for each run; and what the figures are."""
    import pandas

    every = pandas.DataFrame(
        (
            name,
            score.method,
            "" if score.refused else score.metric,
            score.rows[0].unit,
            _shown(score),
            score.mean,
            score.box_rows,
        )
        for name, side in sides.items()
        for score in scores(side.result)
    ).set_axis(["run", "method", "metric", "unit", "shown", "mean", "rows"], axis=1)
    metrics = [metric for metric in every["metric"].unique() if metric]
    if len(metrics) > 1:
        every["shown"] = (every["metric"] + " " + every["shown"]).str.strip()

    def side_by_side(column: str) -> pandas.DataFrame:
        return every.pivot(index="method", columns="run", values=column).reindex(every["method"].unique())

    figures, rows = side_by_side("shown"), side_by_side("rows")
    names = ", ".join(metrics) or "figure"
    caption = f"{names[0].upper()}{names[1:]}, mean ± standard deviation over seeds."
    if any(score.standard_error is not None for side in sides.values() for score in scores(side.result)):
        caption += " With one seed ± is the standard error over test rows."
    if len(sides) == 2 and alike:
        first, second = sides
        means, shared = side_by_side("mean"), set(sides[first].seeds) & set(sides[second].seeds)
        if shared and sides[first].seeds != sides[second].seeds:
            for name, side in sides.items():
                table = tuple(row for row in side.result.table if row.seed in shared)
                of_shared = scores(replace(side.result, table=table, seeds=tuple(sorted(shared))))
                means[name] = pandas.Series({score.method: score.mean for score in of_shared})
        same = (side_by_side("metric").nunique(axis=1) == 1) & (side_by_side("unit").nunique(axis=1) == 1)
        ratio = means[second] / means[first]
        figures["ratio"] = ratio.map("{:.3g}".format).where(
            same & (means > 0).all(axis=1) & (ratio < math.inf)
        )
        caption += f" The ratio is {second} / {first}"
        alone = sides[first].seeds == sides[second].seeds or not shared
        caption += "." if alone else f", by the seeds of both: {in_words(sorted(shared))}."
    rows = rows[rows.any(axis=1)].map("{:,.0f}".format, na_action="ignore")
    frames = [frame.astype(object).fillna("-").reset_index() for frame in (figures, rows)]
    return frames[0], frames[1], caption


def _shown(score: Score) -> str:
    return f"{score} ({score.on})" if score.on and math.isfinite(score.mean) else str(score)


def _plot(sides: Sides, path: Path) -> list[Block]:
    """Validation of all runs against rows; the loss where one of them has no validation."""
    for name, label in (("validation", "validation"), ("loss", "training loss")):
        curves = {letter: side.curves(name) for letter, side in sides.items()}
        if all(curves.values()):
            return [
                Figure(
                    pictures.save(plots.compared(curves, y=label), path),
                    alt=f"{label.capitalize()} of the runs against rows, by method",
                    caption=f"{label.capitalize()} over training, means over seeds: methods by colour and "
                    "mark, runs by the kind of line and mark, and their letter at its end.",
                )
            ]
    return []
