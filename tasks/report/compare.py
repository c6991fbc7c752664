"""`blackbox compare`: runs side by side: settings that differ, figures, one plot; no code needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigurationError
from tasks.report import findings, html_report, pictures
from tasks.report.findings import Curve, Findings, Score
from tasks.report.html_report import Block, Figure, Heading, Table, flat
from tasks.report.lead import START
from tasks.runs.folder import Run
from tasks.runs.machine import changes
from tasks.runs.result import Result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Side(Findings):
    """One of the runs.

    Attributes:
        name: "A" for the first: folders' names are long.
    """

    name: str

    @cached_property
    def scores(self) -> dict[str, Score]:
        """By method, in the order of the run."""
        return {score.method: score for score in findings.scores(self.result)}


@dataclass(frozen=True)
class Comparison:
    """What several runs have in common and what they do not.

    Attributes:
        runs: A line for each run: its letter, folder, problem and seeds.
        sentences: What a reader should know before the figures.
        figures: A line for each method, a column for each run; for two runs of one problem their ratio too.
        rows: The rows that training took, in the same columns.
        settings: A line for each setting that differs, a column for each run.
        page: The page with all of it and the plot.
    """

    runs: pandas.DataFrame
    sentences: list[str]
    figures: pandas.DataFrame
    rows: pandas.DataFrame
    settings: pandas.DataFrame
    page: Path


def compare(folders: Sequence[Path], page: Path) -> Comparison:
    """Set finished runs side by side and write a page of it, with its plot as PNG beside it.

    Args:
        folders: Of two runs or more; no code is executed.
        page: The HTML file to write.

    Raises:
        ConfigurationError: Fewer than two different folders are given.
        RunFolderError: One of them is no run, or not finished.
    """
    import pandas

    paths = [Path(folder).resolve() for folder in folders]
    if not 2 <= len(set(paths)) == len(paths) <= len(ascii_uppercase):
        given = ", ".join(map(str, folders)) or "none"
        raise ConfigurationError(
            f"compare: expected the folders of two different runs or more, got {given}. Name each once."
        )
    named = zip(ascii_uppercase, paths, strict=False)
    sides = [Side(Run.open(path), Result.read(path), name) for name, path in named]
    runs = pandas.DataFrame(
        {
            "run": side.name,
            "folder": str(side.run.path),
            "problem": f"{side.run.task}, {side.run.preset}",
            "seeds": _listed(side.run.seeds),
            "finished": side.result.finished,
        }
        for side in sides
    )
    told, figures, rows, differing = _sentences(sides), _figures(sides), _rows(sides), _settings(sides)
    blocks: list[Block] = [Table(runs, prose=True), Table(figures, caption=_caption(sides))]
    if not rows.empty:
        blocks.append(Table(rows, caption="Rows that training took, mean over seeds."))
    blocks += _plot(sides, page.with_suffix(".png"))
    blocks.append(Heading("Settings"))
    if differing.empty:
        blocks.append(html_report.Paragraph("All settings are the same."))
    else:
        blocks.append(Table(differing, prose=True, caption="Settings that differ."))
    html_report.write(page, f"{len(sides)} runs compared", told, blocks)
    return Comparison(runs, told, figures, rows, differing, page)


def _sentences(sides: Sequence[Side]) -> list[str]:
    told = []
    if not _one_problem(sides):
        each = ", ".join(f"{side.name} ({side.run.task})" for side in sides)
        told.append(
            f"These are runs of different problems, whose figures say nothing about each other: {each}."
        )
    first, *others = sides
    for side in others:
        if side.run.seeds != first.run.seeds:
            told.append(
                f"The seeds differ: {first.name} has {_listed(first.run.seeds)}, {side.name} "
                f"{_listed(side.run.seeds)}."
            )
        if _one_problem(sides) and _other_start(first, side):
            told.append(
                f"{first.name} and {side.name} differ already in {START}, which is not trained: a setting "
                "changes what is judged, so their figures are not on one scale."
            )
        versions = changes(first.run.versions, side.run.versions)
        if versions:
            told.append(f"The versions differ, {first.name} -> {side.name}: {versions}.")
        if first.result.machine != side.result.machine:
            told.append(
                f"{first.name} and {side.name} ran on different machines: do not compare their times."
            )
    return told


def _other_start(one: Side, other: Side) -> bool:
    """Whether the untrained network has another figure with a seed that both runs have."""
    if START not in one.scores or START not in other.scores:
        return False
    before, now = one.scores[START].values, other.scores[START].values
    return any(not math.isclose(before[seed], now[seed], rel_tol=1e-4) for seed in before if seed in now)


def _figures(sides: Sequence[Side]) -> pandas.DataFrame:
    import pandas

    metrics = {score.metric for side in sides for score in side.scores.values()}
    lines = []
    for method in _methods(sides):
        line: dict[str, Any] = {"method": method}
        found = [side.scores.get(method) for side in sides]
        for side, score in zip(sides, found, strict=True):
            named = "" if score is None or len(metrics) == 1 else f"{score.metric} "
            line[side.name] = "-" if score is None else f"{named}{score}"
        if len(sides) == 2 and _one_problem(sides):
            one, other = (math.nan if score is None else score.mean for score in found)
            ratio = other / one if one else math.nan
            line["ratio"] = f"{ratio:.3g}" if math.isfinite(ratio) else "-"
        lines.append(line)
    return pandas.DataFrame(lines)


def _rows(sides: Sequence[Side]) -> pandas.DataFrame:
    import pandas

    lines = []
    for method in _methods(sides):
        rows = {side.name: side.scores[method].box_rows for side in sides if method in side.scores}
        if any(rows.values()):
            shown = {side.name: f"{rows[side.name]:,.0f}" if side.name in rows else "-" for side in sides}
            lines.append({"method": method, **shown})
    return pandas.DataFrame(lines)


def _settings(sides: Sequence[Side]) -> pandas.DataFrame:
    import pandas

    every = {side.name: {"preset": side.run.preset, **flat(side.run.config)} for side in sides}
    frame = pandas.DataFrame(every, dtype=object).fillna("-")
    return frame[frame.nunique(axis=1) > 1].rename_axis("setting").reset_index()


def _plot(sides: Sequence[Side], path: Path) -> list[Block]:
    """Validation of all runs against rows; the loss where one of them has no validation."""
    if not _one_problem(sides):
        return []
    found = _curves(sides, "validation")
    shown = "validation"
    if set(found) != set(_curves(sides, "loss")):
        found, shown = _curves(sides, "loss"), "training loss"
    if not found:
        return []
    made = pictures.save(pictures.compared(found, y=shown), path)
    return [
        Figure(
            made,
            alt=f"{shown.capitalize()} of the runs against rows, by method",
            caption=f"{shown.capitalize()} over training, means over seeds: methods by colour and mark, runs "
            "by the kind of line.",
        )
    ]


def _curves(sides: Sequence[Side], name: str) -> dict[str, dict[str, dict[int, Curve]]]:
    """A figure over training by run, method and seed; runs without it are left out."""
    found = {}
    for side in sides:
        curves = side.curves(name)
        if curves:
            found[side.name] = {
                method: {seed: curve.smooth() if name == "loss" else curve for seed, curve in seeds.items()}
                for method, seeds in curves.items()
            }
    return found


def _caption(sides: Sequence[Side]) -> str:
    metrics = dict.fromkeys(score.metric for side in sides for score in side.scores.values())
    told = f"{', '.join(metrics).capitalize()}, mean ± standard deviation over seeds."
    if len(sides) == 2 and _one_problem(sides):
        told += f" The ratio is {sides[1].name} / {sides[0].name}."
    return told


def _methods(sides: Sequence[Side]) -> list[str]:
    return list(dict.fromkeys(method for side in sides for method in side.scores))


def _one_problem(sides: Sequence[Side]) -> bool:
    return len({side.run.task for side in sides}) == 1


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
