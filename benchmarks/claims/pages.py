"""Where figures stand: in cells of a table, and among the words of a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.claims.figures import Claim, Figure
from benchmarks.rows.report import NOT_RUN

NO_SUCH = "none"  # in a cell for what does not exist, such as a design's box alone
ROOT = Path(__file__).parents[2]
NUMBER = r"(-?(?:\d[\d,]*)?\.?\d+)"
Ours = Callable[[Any, Any], tuple[Figure, str]]
"""(row, column) -> the figure and its file."""


@cache
def text(page: str) -> str:
    """Of a page; without the signs of bold."""
    return (ROOT / page).read_text(encoding="utf-8").replace("**", "")


def in_table(
    page: str, behind: str, rows: Sequence[Any], columns: Mapping[int, Any], ours: Ours
) -> Iterator[Claim]:
    """The numbers at the beginning of cells of a table; "not run" stands where there is none.

    Args:
        page: From the repository's root.
        behind: Words of the page; the first table behind them is read.
        rows: What each row is, in their order; None for one that is not looked at.
        columns: Place of a column -> what it is; the first is 0.
        ours: The figure of a row and a column.

    Raises:
        ValueError: The table has other rows, or a cell no number.
    """
    lines = text(page).partition(behind)[2].splitlines()
    first = next((number for number, text_line in enumerate(lines) if text_line.startswith("|")), len(lines))
    cut = [
        text_line.split("|")[1:-1]
        for text_line in takewhile(lambda line: line.startswith("|"), lines[first:])
    ]
    if len(cut) != len(rows) + 2:
        raise ValueError(
            f"{page}: expected a table of {len(rows)} rows behind {behind!r}, got {len(cut) - 2}."
        )
    for cells, row in zip(cut[2:], rows, strict=True):
        for place, column in columns.items() if row is not None else ():
            stated = re.match(NUMBER, cells[place].strip())
            if cells[place].strip() in (NOT_RUN, NO_SUCH) and not ours(row, column)[0].values:
                continue
            if stated is None:
                raise ValueError(f"{page}: expected a number in {cells[0].strip()!r}, got {cells[place]!r}.")
            yield Claim(page, f"{cells[0].strip()}: {cut[0][place].strip()}", stated[1], *ours(row, column))


def in_text(page: str, words: str, *ours: tuple[Figure, str]) -> Iterator[Claim]:
    """Numbers among words.

    Args:
        page: From the repository's root.
        words: Of the page, with # in the place of each number; they stand there once.
        *ours: The figure and its file for each.

    Raises:
        ValueError: The words are not there, or more than once.
    """
    pattern = r"\s+".join(re.escape(word).replace(r"\#", NUMBER) for word in words.split())
    matches = list(re.finditer(pattern, text(page)))
    if len(matches) != 1:
        raise ValueError(f"{page}: expected {words!r} once, got it {len(matches)} times.")
    for stated, (figure_, file) in zip(matches[0].groups(), ours, strict=True):
        yield Claim(page, words, stated, figure_, file)
