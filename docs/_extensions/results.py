"""Pages on what was measured: one for each benchmark, published numbers, and what was not reached."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _extensions.links import DOCS, relinked
from benchmarks import protocol
from benchmarks.catalogue import BENCHMARKS, SINCE, Benchmark, origin
from benchmarks.tangents.report import over_no_gradient, ratios
from blackbox.words import counted

RESULTS = protocol.RESULTS
FAR = 1.1  # an error over first order's above which a problem is listed as not reached
_LONG = 25  # lines of a table that is shown open
_SEVERAL = 3  # files of a folder, above which they are shown together; and commands that are shown open
_SHOWN = 60  # rows of a table made from a result file that has no text of its own


def pages() -> Iterator[tuple[str, str]]:
    """Places in `docs`, and texts."""
    yield "results/index.md", _index()
    yield "results/not_reached.md", _not_reached()
    written = RESULTS / "README.md"
    yield (
        "results/published.md",
        relinked(written.read_text(encoding="utf-8"), RESULTS, DOCS / "results" / "published.md", places()),
    )
    for each in BENCHMARKS.values():
        yield f"results/{each.name}.md", _benchmark(each)


@cache
def places() -> dict[str, str]:
    """Texts beside result files, and the page that each is on."""
    found = {}
    for each in BENCHMARKS.values():
        for name in each.results:
            for text in _texts(name):
                found[f"benchmarks/results/{text.relative_to(RESULTS).as_posix()}"] = (
                    f"/results/{each.name}.md"
                )
    return found


def _index() -> str:
    rows = [
        (f"[{each.name}]({each.name}.md)", _paged(each.about), _run(each)) for each in BENCHMARKS.values()
    ]
    parts = [
        "# Results",
        "Every figure that README and documentation state was made by a command, and each page below has "
        "that command, the machine, the seeds and the spread, from the files in `benchmarks/results`. A test "
        "compares what the pages state with these files (`tests/benchmarks/test_figures.py`). These pages "
        "are made from them at each build.",
        "- [What rows buy; published numbers](published.md): the command; ours beside theirs.\n"
        "- [What was not reached](not_reached.md): sizes that were not run, problems on which a method is "
        "behind, figures of code that has changed since.",
        "Times are of size `small` on one core.",
        "::::{div} stacked",
        _table(("benchmark", "published table or claim", "time and seeds"), rows),
        "::::",
        "```{toctree}\n:hidden:\n\npublished\nnot_reached\n" + "\n".join(BENCHMARKS) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _run(benchmark: Benchmark) -> str:
    """How long it takes, and of how many seeds it is: "2 hours, 3 seeds"."""
    measured = "" if benchmark.measured() != "not run" else ", not run"
    return f"{benchmark.time}, {counted(benchmark.seeds, 'seed')}{measured}"


def _benchmark(benchmark: Benchmark) -> str:
    page = DOCS / "results" / f"{benchmark.name}.md"
    places_of = {command: origin(files, command) for command, files in benchmark.commands.items()}
    parts = [
        f"# {benchmark.name}",
        f"{_paged(benchmark.about)}.",
        _commands(list(benchmark.commands)),
        f"About {benchmark.time} on one core; seeds: {benchmark.seeds}. Measured on:",
        "\n".join(f"- {place}" for place in dict.fromkeys(places_of.values())),
    ]
    if "paper" in benchmark.sizes:
        parts.append("`--size paper` takes the published settings.")
    about = {name: sentence for name, sentence in SINCE.items() if _matches(name, benchmark)}
    for sentence in about.values():
        parts.append(
            f":::{{admonition}} What has changed since it was measured\n:class: warning\n{sentence}\n:::"
        )
    there = [name for name in benchmark.results if (RESULTS / name).exists()]
    told: set[Path] = set()
    if len(there) > _SEVERAL and all("/" in name for name in there):
        parts += _folder(there, page, told)
    else:
        for name in there:
            parts += list(_file(name, page, len(benchmark.results) > 1, told))
    files = [f"- {_download(RESULTS / name, page)}" for name in there]
    if files:
        parts += ["## Files", "\n".join(files)]
    return "\n\n".join(parts) + "\n"


def _commands(commands: Sequence[str]) -> str:
    """In a console; where there are many the first, and all of them folded."""

    def console(lines: Sequence[str]) -> str:
        return "```console\n" + "\n".join(f"$ {each}" for each in lines) + "\n```"

    if len(commands) <= _SEVERAL:
        return console(commands)
    return f"{console(commands[:1])}\n\n{_folded(f'All {len(commands)} commands', console(commands))}"


def _folder(names: Sequence[str], page: Path, told: set[Path]) -> Iterator[str]:
    """What many files of a folder show together: pictures and texts, and, folded, where each was made."""
    yield "## Measured"
    for name in names:
        yield from _shared(name, page, told, "###")
    rows = []
    for name in names:
        found = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        machine, versions = found.get("machine") or {}, found.get("versions") or {}
        with_torch = f"{versions.get('blackbox-coupling', '')}, torch {versions.get('torch', '')}"
        rows.append((f"`{name}`", f"`{_command(found)}`", str(machine.get("cpu", "")), with_torch))
    yield "## Where each file was made"
    yield _folded(f"{len(rows)} files", _table(("file", "made by", "machine", "versions"), rows))


def _matches(names: str, benchmark: Benchmark) -> bool:
    patterns = [re.escape(name.strip()).replace(r"\*", ".*") for name in names.split(",")]
    return any(re.fullmatch(pattern, name) for pattern in patterns for name in benchmark.results)


def _texts(name: str) -> list[Path]:
    """Markdown that stands beside a result file."""
    path = RESULTS / name
    if path.parent != RESULTS:
        return sorted(path.parent.glob("*.md"))
    beside = path.with_suffix(".md")
    return [beside] if beside.exists() else []


def _pictures(name: str) -> list[Path]:
    path = RESULTS / name
    if path.parent != RESULTS:
        return sorted(path.parent.glob("*.png"))
    return sorted(
        each
        for each in path.parent.glob("*.png")
        if re.fullmatch(rf"{re.escape(path.stem)}(-queries)?", each.stem)
    )


def _file(name: str, page: Path, several: bool, told: set[Path]) -> Iterator[str]:
    """What one result file shows; pictures and texts that several files share are shown once."""
    found = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    if several:
        yield f"## {Path(name).stem}"
    if not several:
        yield "## Measured"
    yield _folded("Command, machine and versions", _origin(found)) if several else _origin(found)
    if isinstance(found.get("differs"), str):
        yield f"What differs from the publication: {found['differs']}"
    yield from _shared(name, page, told, "###" if several else "##")
    if not _texts(name):
        yield from _tables(found)


def _shared(name: str, page: Path, told: set[Path], level: str) -> Iterator[str]:
    """Pictures and texts beside a file that have not been shown."""
    for picture in _pictures(name):
        if picture not in told:
            told.add(picture)
            yield f"![{picture.stem.replace('_', ' ')}]({os.path.relpath(picture, page.parent)})"
    for text in _texts(name):
        if text not in told:
            told.add(text)
            yield f"{level} {text.stem.replace('_', ' ').capitalize()}"
            content = text.read_text(encoding="utf-8").strip()
            content = re.sub(r"^#+ ", f"{level}# ", content, flags=re.MULTILINE)
            content = content.replace(" ± ", "\u00a0±\u00a0")  # on a phone each line of a table stays one
            yield from _parts(relinked(content, text.parent, page, places()))


def _parts(content: str) -> Iterator[str]:
    """A text with its tables of more than `_LONG` lines folded, and what differs from a publication."""
    for part in content.split("\n\n"):
        lines = part.count("\n")
        if part.startswith("| what differs"):
            yield _folded("What differs from the publication", part)
            continue
        yield _folded(f"Table of {lines - 1} lines", part) if part.startswith("|") and lines > _LONG else part


def _folded(title: str, content: str) -> str:
    """What opens where it is asked for."""
    return f"::::{{dropdown}} {title}\n{content}\n::::"


def _origin(found: Mapping[str, Any]) -> str:
    """Command, machine, versions and seeds of a file."""
    lines = [("made by", f"`{_command(found)}`")]
    machine, versions = found.get("machine") or {}, found.get("versions") or {}
    lines.append(
        (
            "machine",
            ", ".join(f"{value} {key}" if key == "cores" else str(value) for key, value in machine.items()),
        )
    )
    lines.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
    if "seeds" in found:
        lines.append(("seeds", str(found["seeds"])))
    return _table(("", ""), [(key, value) for key, value in lines if value])


def _command(found: Mapping[str, Any]) -> str:
    """That made a file."""
    command = found.get("command", "not recorded")
    return command if isinstance(command, str) else " ".join(map(str, command))


def _tables(found: Mapping[str, Any]) -> Iterator[str]:
    """What a file without a text of its own holds, as tables."""
    for key, value in found.items():
        if key in {"command", "machine", "versions", "config", "seeds", "differs", "schema", "published"}:
            continue
        if key == "table" and value and {"method", "value"} <= set(value[0]):
            yield _by_method(value)
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            keys = [name for name in value[0] if all(_plain(each.get(name)) for each in value)]
            if keys:
                rows = [[_number(each.get(name)) for name in keys] for each in value[:_SHOWN]]
                yield f"**{key}**\n\n{_table(keys, rows)}"
        elif isinstance(value, dict) and value:
            yield from _nested(key, value)


def _nested(key: str, value: Mapping[str, Any]) -> Iterator[str]:
    if all(isinstance(each, dict) for each in value.values()):
        inner = list(dict.fromkeys(name for each in value.values() for name in each))
        keys = [name for name in inner if all(_plain(each.get(name)) for each in value.values())]
        if keys:
            rows = [[str(name), *(_number(each.get(one)) for one in keys)] for name, each in value.items()]
            yield f"**{key}**\n\n{_table(('', *map(str, keys)), rows)}"
    else:
        rows = [(str(name), _number(each)) for name, each in value.items() if _plain(each)]
        if rows:
            yield f"**{key}**\n\n{_table(('', ''), rows)}"


def _by_method(table: Sequence[Mapping[str, Any]]) -> str:
    """A `result.json`: a line for each method, over its seeds."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in table):
        rows = [row for row in table if row["method"] == method]
        values = [row["value"] for row in rows if row["value"] is not None]
        cell = _spread(values) if len(values) == len(rows) else "not finite"
        spent = [row["rows"] for row in rows if isinstance(row.get("rows"), int)]
        lines.append(
            (method, cell, _range(values), f"{round(fmean(spent)):,}" if spent else "", str(len(rows)))
        )
    metric = f"{table[0].get('metric', 'value')}, mean ± standard deviation"
    main = _table(("method", metric, "lowest to highest", "rows, mean", "seeds"), lines)
    others = _others(table)
    return f"{main}\n\n{_folded('Other figures, means over the seeds', others)}" if others else main


def _others(table: Sequence[Mapping[str, Any]]) -> str:
    """Make the table of further figures that all methods have; it is empty where there are none."""
    kept = [row.get("extra") or {} for row in table]
    names = [name for name in kept[0] if all(isinstance(extra.get(name), float) for extra in kept)]
    if not names:
        return ""
    lines = []
    for method in dict.fromkeys(row["method"] for row in table):
        extras = [extra for row, extra in zip(table, kept, strict=True) if row["method"] == method]
        lines.append((method, *(_number(fmean(extra[name] for extra in extras)) for name in names)))
    return _table(("method", *names), lines)


def _not_reached() -> str:
    far = list(_far())
    paper = [f"`{each.name}`" for each in BENCHMARKS.values() if "paper" in each.sizes]
    parts = [
        "# What was not reached",
        "Made from the files in `benchmarks/results`, as the other pages here.",
        "## Problems on which learned tangents stay behind first order",
        f"Error over first order's above {FAR:g} with the default tangent (`chosen`), mean over the seeds, "
        "beside what training without any gradient through the box reaches on the same problem. "
        "(`python -m benchmarks tangents --size small`)",
        _table(("problem", "learned tangents", "no gradient", "tangents over no gradient"), far)
        if far
        else "None.",
        "## Published numbers without a line of ours",
        "They are listed at the end of [published numbers](published.md).",
        "## Published sizes",
        f"`--size paper` takes the settings of the publication in {', '.join(paper)}. Of "
        "these Kuramoto-Sivashinsky (`tangents`) alone was run, with one seed. Elsewhere images are "
        "scikit-learn's digits or drawn shapes in the place of CIFAR-10 and ImageNet, and trainings are "
        "shorter. What compares all the same is said table by table in "
        "[published numbers](published.md).",
        "## Figures of code that has changed since",
        "\n".join(f"- `{name}`: {sentence}" for name, sentence in SINCE.items()) or "None.",
    ]
    return "\n\n".join(parts) + "\n"


def _far() -> Iterator[tuple[str, str, str, str]]:
    for path in sorted((RESULTS / "tangents").glob("*.json")):
        curves = json.loads(path.read_text(encoding="utf-8")).get("curves", {})
        own, without = ratios(curves, "chosen"), ratios(curves, "no-gradient")
        if own and fmean(own) > FAR:
            beside = over_no_gradient(curves, "chosen")
            yield (
                path.stem,
                f"{fmean(own):.2f}",
                f"{fmean(without):.2f}" if without else "",
                f"{fmean(beside):.2f}" if beside else "",
            )


def _paged(about: str) -> str:
    """A claim's place as it is read: the page first, in code."""
    return re.sub(r"(README|docs/[\w/]+\.md)(?=[,:] )", lambda found: f"`{found[1]}`", about)


def _download(path: Path, page: Path) -> str:
    return f"[{path.relative_to(RESULTS).as_posix()}]({os.path.relpath(path, page.parent)})"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |" for cells in lines)


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _number(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _spread(values: Sequence[float]) -> str:
    mean = fmean(values)
    if not math.isfinite(mean):
        return "not finite"
    return _number(mean) + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _range(values: Sequence[float]) -> str:
    return f"{_number(min(values))} to {_number(max(values))}" if len(values) > 1 else ""
