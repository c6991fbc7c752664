"""Words of docstrings, pages and names that are hard to read: `python docs/words.py [PATHS]` counts them.

The figures are looked at, not enforced: a fragment or a long sentence can be the plainest way to say it.
`--list` gives the place of each finding. Without paths, three packages and all pages are read.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("blackbox", "zo", "tasks")
LONG = 45  # words of a sentence
HEADS = (
    "After As At Before Beside Beyond By For From How If In Of On Over That These Those To Under What When "
    "Where Whether Which Who Whose With Without"
)
FRAGMENT = re.compile(rf"({HEADS.replace(' ', '|')})\b")
# A name of one of these words says what was done to a value, or where it stands, but not what it is.
PARTICIPLES = frozenset(
    "after apart asked before beside chosen done drawn each fitted found given gone heard held kept known "
    "lacking later left lost made meant missing other others own read rest said seen shown spent taken there "
    "told tried used wanted written".split()
)


class Finding(NamedTuple):
    """One place that a reader may want to mend."""

    kind: str
    path: Path
    line: int
    text: str


class Counts(NamedTuple):
    """How much was read, by kind, and the findings in it."""

    read: Counter[str]
    findings: list[Finding]


def prose(page: str) -> str:
    """The text of a Markdown page, with code, tables, comments and targets of links blanked."""
    page = re.sub(r"\A---\n.*?\n---$", _blank, page, flags=re.S | re.M)
    page = re.sub(r"^( *)(```|~~~).*?^\1\2`*$", _blank, page, flags=re.S | re.M)
    page = re.sub(r"<!--.*?-->", _blank, page, flags=re.S)
    page = re.sub(r"^(?: {4,}\S|\t| *\|).*$", "", page, flags=re.M)
    return re.sub(r"`[^`\n]*`|(?<=\])\([^)\s]*\)|https?://\S+", " ", page)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def long_sentences(text: str) -> Iterator[tuple[int, str]]:
    """Line (from 0) and text of each sentence that has more words than a reader holds."""
    ends = r"(?<=[.!?:;])\)?\s+(?=[A-Z`*(\[])|\n\s*\n|\n(?=\s*(?:[-*#>]|\d+\.)\s)|\n(?=[ \w, ()*]+:\s)"
    start = 0
    for end in [*(match.end() for match in re.finditer(ends, text)), len(text)]:
        sentence = text[start:end]
        if len(re.findall(r"[A-Za-z']*[A-Za-z][\w'-]*", sentence)) > LONG:
            first = start + len(sentence) - len(sentence.lstrip())
            yield text.count("\n", 0, first), " ".join(sentence.split())
        start = end


def of_page(path: Path) -> Counts:
    """Numbers and long sentences in the prose of a Markdown page."""
    text = prose(path.read_text(encoding="utf-8"))
    findings = [Finding("long sentence", path, line + 1, found) for line, found in long_sentences(text)]
    for line, words in enumerate(text.splitlines(), 1):
        numbers = re.findall(r"(?<![\w.])\.?\d[\d,.]*", words)
        findings += [Finding("number", path, line, words.strip()) for _ in numbers]
    return Counts(Counter({"number": len(re.findall(r"[A-Za-z]+", text)), "long sentence": 1}), findings)


def of_module(path: Path) -> Counts:
    """Fragments and long sentences in docstrings of a module, and participles among assigned names."""
    read, findings = Counter[str](), []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if not text:
                continue
            line = node.body[0].lineno
            read["fragment"] += 1
            if FRAGMENT.match(text):
                findings.append(Finding("fragment", path, line, text.splitlines()[0]))
            findings += [
                Finding("long sentence", path, line + at, found) for at, found in long_sentences(text)
            ]
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
            read["participle"] += 1
            if name.strip("_") in PARTICIPLES:
                findings.append(Finding("participle", path, node.lineno, name))
    return Counts(read, findings)


def twice(modules: list[Path]) -> list[Finding]:
    """The modules whose file name another module has, too."""
    names = Counter(path.stem for path in modules)
    return [Finding("name twice", p, 1, p.stem) for p in modules if names[p.stem] > 1 and p.stem[0] != "_"]


def files(paths: list[Path], ending: str) -> list[Path]:
    """The files below the paths that have this ending, but none of hidden or built folders."""
    every = {file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))}
    return sorted(file for file in every if file.suffix == ending and not re.search(r"/[._]\w*/", str(file)))


def _part(path: Path) -> str:
    parts = path.resolve().relative_to(ROOT).parts if path.resolve().is_relative_to(ROOT) else path.parts
    return "/".join(parts[: max(1, min(2, len(parts) - 1))])


def _table(head: str, rows: dict[str, list[str]]) -> None:
    print(
        f"{head}\n" + "\n".join(f"{part:28}" + "".join(f"{c:>18}" for c in row) for part, row in rows.items())
    )


def main(arguments: list[str]) -> None:
    """Print a table by package, and, where asked, the place of each finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "paths", nargs="*", type=Path, help="files and folders; the packages and the pages if none"
    )
    parser.add_argument("--list", action="store_true", help="print the place of each finding")
    parser.add_argument("--kind", help="the one kind to list, such as fragment")
    asked = parser.parse_args(arguments)
    modules = files(asked.paths or [ROOT / package for package in PACKAGES], ".py")
    pages = files(asked.paths or [ROOT], ".md")
    found: dict[str, list[Counts]] = {}
    for path in modules:
        for part in dict.fromkeys((_part(path).split("/")[0], _part(path))):
            found.setdefault(part, []).append(of_module(path))
    rows = {}
    for part, counts in sorted(found.items()):
        read = sum((c.read for c in counts), Counter())
        kinds = Counter(f.kind for c in counts for f in c.findings)
        fragments, names = (100 * kinds[k] / max(read[k], 1) for k in ("fragment", "participle"))
        rows[part] = [
            str(read["fragment"]),
            f"{fragments:.1f} %",
            str(kinds["long sentence"]),
            f"{names:.1f} %",
        ]
    _table("docstrings: how many, fragments, sentences over 45 words; participles among names", rows)
    texts = [(page, of_page(page)) for page in pages]
    rows = {}
    for part in dict.fromkeys(_part(page) for page in pages):
        counts = [c for page, c in texts if _part(page) == part]
        kinds = Counter(f.kind for c in counts for f in c.findings)
        words = sum(c.read["number"] for c in counts)
        rows[part] = [f"{100 * kinds['number'] / max(words, 1):.1f}", str(kinds["long sentence"])]
    _table("pages: numbers in 100 words of prose, sentences over 45 words", rows)
    doubles = twice(modules)
    print(f"module names that occur twice: {len({f.text for f in doubles})}")
    if asked.list:
        everything = [of_module(module) for module in modules] + [counts for _, counts in texts]
        for kind, path, line, text in [*(f for counts in everything for f in counts.findings), *doubles]:
            if asked.kind in (None, kind):
                print(f"{path}:{line}: {kind}: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
