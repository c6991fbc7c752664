"""`reproduce`: run groups of settings, or find them finished, and leave a table and `result.json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from benchmarks import protocol
from benchmarks.images.sizes import SIZES, Size, differs
from tasks.applications.image_classification import ImageClassification
from tasks.applications.image_classification.config import Config
from tasks.configuration import to_dict
from tasks.folder.result import Result


@dataclass(frozen=True)
class Group:
    """One run: what tells it from the others, its settings, and what was published of its methods (%)."""

    label: str | float
    config: Config
    published: dict[str, float] = field(default_factory=dict)
    problem: type[ImageClassification] = ImageClassification


@dataclass(frozen=True)
class Line:
    """A method of a group: accuracies on test images in percent, and what ours cost a seed.

    `validation` is on the held-out training images, by which settings may be chosen; `values` has `ours` of
    each seed.
    """

    label: str | float
    method: str
    published: float | None
    ours: float | None
    spread: float
    seeds: int
    parameters: int
    queries: float
    seconds: float
    validation: float | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """A comparison of groups of runs.

    Attributes:
        name: Of the benchmark, and of the folder of results.
        title: Of the table.
        across: What the labels of groups are.
        groups: The runs of a size.
        note: A sentence more on what differs.
        seeds: As many as size small has if none are asked for.
    """

    name: str
    title: str
    across: str
    groups: Callable[[Size], Sequence[Group]]
    note: str = ""
    seeds: int = 1


def reproduce(which: Reproduction, words: Sequence[str]) -> list[Line]:
    """The whole of a benchmark, from its command line to its files.

    A run that was stopped goes on where it was, and one that is finished is not run again, as long as --runs
    is the same.
    """
    name = which.name
    parser = protocol.options(name, which.title, SIZES, trains=True)
    parser.add_argument("--out", type=Path, help="benchmarks/results/NAME; for ci a folder beside the runs")
    chosen = parser.parse_args(words)
    size: Size = chosen.size
    wanted = list(which.groups(size))
    seeds = chosen.seeds or range(which.seeds if size == "small" else 1)
    table: list[Line] = []
    for group in wanted:
        print(f"{name}: {group.label}")
        problem = group.problem(group.config, folder=chosen.data)
        run = protocol.finished(problem, size, seeds, chosen.runs / f"{name}-{size}")
        table += lines(group, Result.read(run.path))
    sentence = " ".join(filter(None, [differs(size, [group.config for group in wanted]), which.note]))
    usual = protocol.RESULTS / name if size != "ci" else chosen.runs / f"{name}-ci-results"
    out = chosen.out or usual
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(which.title, which.across, table, sentence)
    (out / "table.md").write_text(text, encoding="utf-8")
    content = {
        "preset": size,
        "seeds": list(seeds),
        "differs": sentence,
        "configs": {str(group.label): to_dict(group.config) for group in wanted},
        "table": [asdict(line) for line in table],
    }
    protocol.write(name, words, content, out / "result.json")
    print(text)
    return table


def lines(group: Group, result: Result) -> list[Line]:
    """A line of the table for each method of a group."""
    table = []
    for method in group.config.methods:
        rows = [row for row in result.table if row.method == method]
        values = [100 * row.value for row in rows if row.value is not None]
        whole = len(values) == len(rows)
        errors = (row.extra["validation"] for row in rows)
        seen = [1 - value for value in errors if isinstance(value, float)]
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
                tuple(values) if whole else (),
            )
        )
    return table


def markdown(title: str, across: str, table: Sequence[Line], sentence: str) -> str:
    """The table, with the published column beside ours, and the sentence on what differs."""
    text = [
        f"# {title}",
        "",
        f"| {across} | method | published (%) | ours (%) | parameters | queries | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in table:
        published = "-" if line.published is None else f"{line.published:.2f}"
        ours = "not finite" if line.ours is None else f"{line.ours:.2f}"
        ours += f" ± {line.spread:.2f}" if line.seeds > 1 and line.ours is not None else ""
        label = f"{line.label:,}" if isinstance(line.label, int) else f"{line.label}"
        text.append(
            f"| {label} | {line.method} | {published} | {ours} | {line.parameters:,} | {line.queries:,.0f} | "
            f"{line.seconds:.0f} |"
        )
    return "\n".join([*text, "", sentence, ""])
