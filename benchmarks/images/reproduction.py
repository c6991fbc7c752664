"""`reproduce`: run groups of settings, or find them finished, and leave a table, a plot and `result.json`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.images import plot
from benchmarks.images.plot import Line
from benchmarks.images.sizes import PRESETS, Preset, differs
from benchmarks.protocol import RESULTS
from tasks.configuration import to_dict
from tasks.image_classification import ImageClassification
from tasks.image_classification.config import Config
from tasks.progress import Progress, make_progress
from tasks.runs.folder import Run
from tasks.runs.machine import machine, versions
from tasks.runs.result import Result
from tasks.work import work


@dataclass(frozen=True)
class Group:
    """One run: what tells it from the others, its settings, and what was published of its methods (%)."""

    label: str | float
    config: Config
    published: dict[str, float] = field(default_factory=dict)
    problem: type[ImageClassification] = ImageClassification


def reproduce(
    name: str,
    title: str,
    across: str,
    groups: Callable[[Preset], Sequence[Group]],
    words: Sequence[str] | None = None,
    note: str = "",
    chooses: bool = False,
) -> list[Line]:
    """The whole of a script, from its command line to its files.

    Args:
        name: of the script, and of the folder of results.
        title: of the table.
        across: what the labels of groups are.
        groups: the runs of a preset.
        words: of the command line; those of the process if None.
        note: a sentence more on what differs.
        chooses: whether settings are chosen by it: then accuracies on validation images are shown, too.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=title)
    parser.add_argument("--preset", choices=PRESETS, default="ci")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--out", type=Path, help="benchmarks/results/NAME; for ci a folder beside the runs")
    chosen = parser.parse_args(words)
    wanted, seeds = list(groups(chosen.preset)), tuple(range(chosen.seeds))
    table: list[Line] = []
    with make_progress() as progress:
        for group in wanted:
            progress.say(f"{name}: {group.label}")
            folder = chosen.runs / f"{name}-{chosen.preset}"
            result = finished(folder, chosen.preset, group, seeds, chosen.data, progress)
            table += lines(group, result)
    sentence = " ".join(filter(None, [differs(chosen.preset, wanted[0].config), note]))
    usual = RESULTS / name if chosen.preset != "ci" else chosen.runs / f"{name}-ci-results"
    out = chosen.out or usual
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(title, across, table, sentence, chooses)
    (out / "table.md").write_text(text, encoding="utf-8")
    plot.draw(table, across, out / "plot.png")
    content = {
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{name}", *(sys.argv[1:] if words is None else words)]
        ),
        "preset": chosen.preset,
        "seeds": list(seeds),
        "differs": sentence,
        "machine": machine(),
        "versions": versions(),
        "config": to_dict(wanted[0].config),
        "table": [asdict(line) for line in table],
    }
    (out / "result.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{text}\nwritten to {out}")
    return table


def finished(
    folder: Path, preset: str, group: Group, seeds: Sequence[int], data: Path, progress: Progress
) -> Result:
    """The result of a group's run: read, gone on with, or run from the start."""
    problem = group.problem(group.config, folder=data)
    known = (Run.open(path.parent) for path in sorted(folder.glob("*/config.json")))
    same = (run for run in known if run.config == to_dict(group.config) and run.seeds == tuple(seeds))
    run = next(same, None) or Run.create(folder, problem.name(), preset, group.config, seeds, data=data)
    if not run.finished:
        with run.lock():
            work(problem, run, progress)
    return Result.read(run.path)


def lines(group: Group, result: Result) -> list[Line]:
    """One for each method of a group."""
    table = []
    for method in group.config.methods:
        rows = [row for row in result.table if row.method == method]
        values = [100 * row.value for row in rows if row.value is not None]
        whole = len(values) == len(rows)
        found = (row.extra["validation"] for row in rows)
        seen = [1 - value for value in found if isinstance(value, float)]
        table.append(
            Line(
                group.label,
                method,
                group.published.get(method),
                fmean(values) if whole else None,
                stdev(values) if whole and len(values) > 1 else 0.0,
                len(rows),
                int(rows[0].extra["weights"] or 0),
                fmean(row.queries for row in rows),
                fmean(row.seconds for row in rows),
                100 * fmean(seen) if len(seen) == len(rows) else None,
            )
        )
    return table


def markdown(title: str, across: str, table: Sequence[Line], sentence: str, chooses: bool = False) -> str:
    """The table, with the published column beside ours, and the sentence on what differs."""
    own = "validation (%) | ours (%)" if chooses else "ours (%)"
    text = [
        f"# {title}",
        "",
        f"| {across} | method | published (%) | {own} | parameters | queries | seconds |",
    ]
    text.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |" + " ---: |" * chooses)
    for line in table:
        published = "-" if line.published is None else f"{line.published:.2f}"
        ours = "not finite" if line.ours is None else f"{line.ours:.2f}"
        ours += f" ± {line.spread:.2f}" if line.seeds > 1 and line.ours is not None else ""
        if chooses:
            ours = f"{'-' if line.validation is None else f'{line.validation:.2f}'} | {ours}"
        label = f"{line.label:,}" if isinstance(line.label, int) else f"{line.label}"
        text.append(
            f"| {label} | {line.method} | {published} | {ours} | {line.parameters:,} | {line.queries:,.0f} | "
            f"{line.seconds:.0f} |"
        )
    return "\n".join([*text, "", sentence, ""])
