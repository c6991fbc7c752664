"""One column of a table of text, by its number or its heading, as programs write beside a coordinate."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.adapters.command.tables import commas, is_number, may_be_headings, number, words_of
from blackbox.words import counted


@dataclass(frozen=True)
class _Line:
    """A line that is not empty.

    Attributes:
        index: Its number in the file, from 1.
        text: As it is.
        words: Of what is no comment.
    """

    index: int
    text: str
    words: list[str]

    @property
    def shown(self) -> str:
        """For a message."""
        return repr(self.text[:80].strip())


def read_column(path: Path, column: str, shape: tuple[int, ...], floating: bool) -> np.ndarray[Any, Any]:
    """The numbers of a column, from the first line to the last, in the expected shape.

    Args:
        path: .csv has commas between columns, any other spaces. What follows "#" is left out, but for a line
            of headings. Titles, headings and units above the first line of numbers are skipped.
        column: its number, from "1"; or its heading, in a line above the numbers that has as many headings as
            there are columns: with spaces between, or with tabs, bars or two spaces if a heading has a space.
        shape: of the array, in C order.
        floating: whether the numbers are floats.

    Raises:
        ValueError, OSError: there is no such column, or it is not certain which one it is; or it has other
            than so many numbers.
    """
    with path.open(encoding="utf-8") as file:
        lines = [
            _Line(index, line, words_of(path, line)) for index, line in enumerate(file, 1) if line.strip()
        ]
    first, width = _first_of_numbers(lines)
    above, table = lines[:first], [line for line in lines[first:] if line.words]
    place, numbers = 0, []
    if table:
        place = int(column) - 1 if column.isdecimal() else _place(path, column, above, width)
    for line in table:
        try:
            if len(line.words) != width and (all(map(is_number, line.words)) or not column.isdecimal()):
                raise ValueError("which column a word is in is not certain")
            numbers.append(number(line.words[place], floating))
        except (ValueError, IndexError):
            wide = "" if len(line.words) == width else f" The others have {counted(width, 'column')}."
            raise ValueError(
                f"{path.name}: expected a number in column {column} of line {line.index}, got "
                f"{line.shown}.{commas(path, line.text) or wide}"
            ) from None
    if len(numbers) != math.prod(shape):
        skipped = f" Line {above[-1].index}, {above[-1].shown}, was taken for headings." if above else ""
        raise ValueError(
            f"{path.name}, column {column}: expected {counted(math.prod(shape), 'number')} for shape "
            f"{shape}, found {len(numbers)}.{skipped}"
        )
    return np.array(numbers, np.float64 if floating else np.int64).reshape(shape)


def _first_of_numbers(lines: list[_Line]) -> tuple[int, int]:
    """Where the table begins below titles and headings, and how many columns most of its lines have."""
    have = [(index, line) for index, line in enumerate(lines) if any(map(is_number, line.words))]
    of_numbers = [line.words for _, line in have if not may_be_headings(line.words)]
    widths = Counter(map(len, of_numbers or [line.words for _, line in have]))
    if not widths:
        return len(lines), 0
    width = max(widths, key=lambda size: (widths[size], size))
    first = next((index for index, line in have if len(line.words) == width), len(lines))
    while first and _of_numbers(lines[first - 1].words, width):  # with a column too few, or asterisks alone
        first -= 1
    return first, width


def _of_numbers(words: list[str], width: int) -> bool:
    """Whether a line above the first whole line of the table belongs to it, with something wrong in it."""
    asterisks = len(words) == width and set("".join(words)) == {"*"}
    return asterisks or (bool(words) and all(map(is_number, words)))


def _place(path: Path, heading: str, above: list[_Line], width: int) -> int:
    """The index of the column with a heading, which the lines above the numbers leave no doubt of.

    Raises:
        ValueError: saying what headings there are, and for how many columns.
    """
    mentions: list[tuple[_Line, list[str], int | None]] = []
    for line in above:
        ways = _headings(path, line.text)
        fields = next((way for way in ways if len(way) == width), ways[0])
        if any(heading in way for way in ways):
            certain = len(fields) == width and fields.count(heading) == 1
            mentions.append((line, fields, fields.index(heading) if certain else None))
    mend = "Give the column's number, from 1."
    if not mentions:
        shown = "; ".join(", ".join(_headings(path, line.text)[0]) for line in above)[:200]
        raise ValueError(
            f"{path.name}: expected a column {heading!r} in a line above the numbers, found "
            f"{f'the headings {shown}' if shown else 'no headings'}, and {counted(width, 'column')}. "
            "Give one of the headings, or the column's number, from 1."
        )
    nearest, fields, place = mentions[-1]
    if place is None and fields.count(heading) > 1 and len(fields) == width:
        raise ValueError(
            f"{path.name}: expected one column {heading!r}, found {fields.count(heading)} in line "
            f"{nearest.index}, {nearest.shown}. {mend}"
        )
    if place is None:
        raise ValueError(
            f"{path.name}: expected a heading for each of the {counted(width, 'column')}, found "
            f"{counted(len(fields), 'word')} in line {nearest.index}: {', '.join(fields)[:200]}. "
            f"Which column is {heading!r} is not certain. {mend}"
        )
    if {other for _, _, other in mentions} - {None, place}:
        raise ValueError(
            f"{path.name}: expected {heading!r} in one line above the numbers, found it in lines "
            f"{', '.join(str(line.index) for line, _, _ in mentions)}, for different columns. {mend}"
        )
    return place


def _headings(path: Path, text: str) -> list[list[str]]:
    """The ways to read a line as headings, the plainest first."""
    text = text.strip()
    text = text.lstrip("# \t") if text.startswith("#") else text
    if path.suffix.lower() == ".csv":
        ways = [next(csv.reader([text], skipinitialspace=True), [])]
    else:
        bare = text.partition(" #")[0]
        ways = [bare.split(), re.split(r"\t+|\s{2,}", bare), bare.strip("|").split("|")]
    stripped = [[field.strip(" \t\"'") for field in way] for way in ways]
    return [way[:-1] if len(way) > 1 and not way[-1] else way for way in stripped]
