"""Decisions are found by their numbers: each is one section of a page, and those that are cited are there."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = [path for path in sorted(DECISIONS.glob("*.md")) if path.name != "index.md"]
HEADING = r"^## (\d{4}) (.+)\n\n(.+)$"
LINK = r"\(((?:[\w./-]*/)?[\w-]+\.md)#(\d{4}-[\w-]+)\)"
CITED = r"\b[Dd]ecisions?\s+\[?(\d{1,4})\b(?:,\s+\[?(\d+)\b)*(?:\s+and\s+\[?(\d+)\b)?"
SKIPPED = ("_build", ".venv", "results", "gallery", "project", ".git", "node_modules")


def anchor(heading: str) -> str:
    """What a link to a heading says behind its `#`."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections() -> list[tuple[str, str, str, str]]:
    """Page, number, title and status of each decision."""
    return [
        (page.name, match[1], match[2], match[3])
        for page in PAGES
        for match in re.finditer(HEADING, page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]


def texts(*endings: str) -> list[Path]:
    """Files of the repository that may cite a decision."""
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        if len(Path(folder).relative_to(ROOT).parts) < 2:
            folders[:] = [name for name in folders if not name.startswith(SKIPPED)]
        found += [Path(folder) / name for name in names if name.endswith(endings)]
    return sorted(found)


def test_a_number_is_given_once_and_says_whether_it_is_in_force():
    numbers = [number for _, number, _, _ in sections()]
    assert len(set(numbers)) == len(numbers) > 100
    headings = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(re.findall(r"^## ", headings, flags=re.MULTILINE)) == len(numbers)  # nothing else has one
    for page, number, _, status in sections():
        assert re.match(r"\*(In force|Changed by \[?\d{4})", status), (page, number, status)


def test_the_index_has_each_of_them_and_no_other():
    index = (DECISIONS / "index.md").read_text(encoding="utf-8")
    listed = {(int(number), place) for number, place in re.findall(r"\[(\d+)\]\(([\w.#-]+)\)", index)}
    assert listed == {
        (int(number), f"{page}#{anchor(f'{number} {title}')}") for page, number, title, _ in sections()
    }


def test_links_to_decisions_lead_to_one():
    places = {(page, anchor(f"{number} {title}")) for page, number, title, _ in sections()}
    found = 0
    for path in texts(".md"):
        for target, place in re.findall(LINK, path.read_text(encoding="utf-8")):
            assert (Path(target).name, place) in places, (path, target, place)
            assert (path.parent / target).resolve().parent == DECISIONS, (path, target)
            found += 1
    assert found > 100


def test_numbers_that_code_and_pages_cite_are_there():
    numbers = {int(number) for _, number, _, _ in sections()}
    cited = []
    for path in texts(".md", ".py"):
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(CITED, text):
            cited += [(int(number), path) for number in match.groups() if number]
        if path in PAGES:
            cited += [
                (int(number), path) for number in re.findall(r"(?<![\d.,])0\d{3}\b(?=[^\d.]|\.\D)", text)
            ]
    assert not [(number, path) for number, path in cited if number not in numbers]
    assert len(cited) > 100
