"""Numbers that a page has marked with the name of a figure: `1.01<!--=replay.20-->`.

A mark stands right behind its number, which is rounded as the page likes. Whoever reads the page, built or
not, sees the number alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from blackbox.checks import nearest
from tasks.folder import atomic

ROOT = Path(__file__).parents[2]
MADE = ("_build", "results", "gallery", "project")  # folders of `docs` that its build makes
NAME = r"<!--=([^<>]*?)-->"
MARKED = re.compile(rf"(-?(?:\d[\d,]*)?\.?\d+)?{NAME}")


def pages() -> list[Path]:
    """README, the pages of `docs` that are written by hand, and the page of published numbers."""
    docs = ROOT / "docs"
    by_hand = [path for path in docs.rglob("*.md") if path.relative_to(docs).parts[0] not in MADE]
    return [ROOT / "README.md", *sorted(by_hand), ROOT / "benchmarks" / "results" / "README.md"]


def rounded(value: float, like: str) -> str:
    """A figure with the decimals of a number on a page, and without a zero in front where that has none."""
    shown = f"{value:,.{len(like.partition('.')[2])}f}"
    return shown.replace("0.", ".", 1) if re.match(r"-?\.", like) and abs(value) < 1 else shown


def mended(text: str, figures: Mapping[str, float]) -> str:
    """The text with today's numbers before its marks.

    Raises:
        ValueError: A mark has no number right before it, or a name that is no figure's.
    """

    def today(match: re.Match[str]) -> str:
        number, name = match[1], match[2]
        if number is None:
            raise ValueError(f"Expected a number right before <!--={name}-->, as in 1.01<!--={name}-->.")
        if name not in figures:
            raise ValueError(
                f"Expected a name of benchmarks/results/figures.json, got {name!r}. {nearest(name, figures)}"
            )
        right = abs(float(number.replace(",", "")) - figures[name]) <= 0.5 * 10.0 ** -_decimals(number) + 1e-9
        return match[0] if right else match[0].replace(number, rounded(figures[name], number), 1)

    return MARKED.sub(today, text)


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def off(text: str, figures: Mapping[str, float]) -> Iterator[str]:
    """The marked numbers of a text that are not today's: "1.02, name: 1.01"."""
    for before, now in zip(MARKED.finditer(text), MARKED.finditer(mended(text, figures)), strict=True):
        if before[1] != now[1]:
            yield f"{before[1]}, {before[2]}: {now[1]}"


def write(figures: Mapping[str, float]) -> list[Path]:
    """Bring all pages up to date; those that changed.

    Raises:
        ValueError: As `mended`, with the page.
    """
    changed = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            now = mended(text, figures)
        except ValueError as error:
            raise ValueError(f"{page.relative_to(ROOT)}: {error}") from None
        if now != text:
            atomic.write_bytes(page, now.encode())
            changed.append(page)
    return changed
