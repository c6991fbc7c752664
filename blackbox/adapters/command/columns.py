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

from blackbox.adapters.command.dialects import Dialect, dialect_of, lines_of
from blackbox.adapters.command.numbers import RUN_TOGETHER, is_number, is_unit, number, text_of
from blackbox.adapters.command.tables import BEHIND, may_be_headings, separators, words_alone
from blackbox.words import counted


@dataclass(frozen=True)
class _Line:
    """A line that is not empty.

    Attributes:
        index: Its number in the file, from 1.
        text: Its text, unchanged.
        words: Its words, without comments.
    """

    index: int
    text: str
    words: list[str]

    @property
    def shown(self) -> str:
        """The line as messages show it."""
        return repr(self.text[:80].strip())


def read_column(path: Path, column: str, shape: tuple[int, ...], floating: bool) -> np.ndarray[Any, Any]:
    """The numbers of a column, from the first line to the last, in the expected shape.

    Args:
        path: the file. A .csv file has commas between columns, or the separator that `dialect_of` finds; any
            other file has spaces. Text after "#" is left out, but for a line of headings. Titles, headings
            and units above the first line of numbers are skipped.
        column: its number, from "1"; or its heading, in a line above the numbers that has as many headings as
            there are columns: with spaces between, or with tabs, bars or two spaces if a heading has a space.
        shape: of the array, in C order.
        floating: whether the numbers are floats.

    Raises:
        ValueError, OSError: there is no such column, or it is not certain which one it is; or it has other
            than so many numbers.
    """
    text = text_of(path)
    dialect = dialect_of(path, text, floating)
    rows = enumerate(lines_of(text), 1)
    lines = [_Line(index, line, dialect.words(line)) for index, line in rows if line.strip()]
    first, width = _first_of_numbers(lines)
    above, table = lines[:first], [line for line in lines[first:] if line.words]
    place, numbers = 0, []
    doubtful = table if dialect.separator == "," else []  # "0 1,5" is two numbers and one comma, or 0 and 1.5
    _refuse_other_separators(path, column, doubtful if table else above)
    if table:
        _refuse_fewer_headings(path, dialect, above, width)
        place = int(column) - 1 if column.isdecimal() else _place(path, dialect, column, above, width)
        _refuse_units(path, column, [line.words[place + 1 : place + 2] for line in table])
    for line in table:
        try:
            behind = column.isdecimal() and all(map(is_number, line.words[: place + 1]))  # what else there is
            if len(line.words) != width and (all(map(is_number, line.words)) or not behind):
                raise ValueError("which column a word is in is not certain")
            if any(RUN_TOGETHER.fullmatch(word) and not is_number(word) for word in line.words[:place]):
                raise ValueError("what stands in front are two columns")
            numbers.append(number(line.words[place], floating))
        except (ValueError, IndexError):
            hint = "" if len(line.words) == width else f" The others have {counted(width, 'column')}."
            if words_alone(line.text, line.words):
                hint = BEHIND
            raise ValueError(
                f"{path.name}: expected a number in column {column} of line {line.index}, got "
                f"{line.shown}.{separators(path, line.text) or hint}"
            ) from None
    if len(numbers) != math.prod(shape):
        skipped = f" Line {above[-1].index}, {above[-1].shown}, was taken for headings." if above else ""
        raise ValueError(
            f"{path.name}, column {column}: expected {counted(math.prod(shape), 'number')} for shape "
            f"{shape}, found {len(numbers)}.{skipped}"
        )
    return np.array(numbers, np.float64 if floating else np.int64).reshape(shape)


def _refuse_other_separators(path: Path, column: str, lines: list[_Line]) -> None:
    """Refuse lines that have numbers, though none in the way that the file's name means.

    Raises:
        ValueError: the message has the first such line, or the last line where only one of its words is a
            number in another way.
    """
    last = [(line, word) for line in lines[-1:] for word in line.words if "," in word]
    for line, text in [*((line, line.text) for line in lines), *last]:
        if hint := separators(path, text):
            raise ValueError(
                f"{path.name}: expected a number in column {column} of line {line.index}, got "
                f"{line.shown}.{hint}"
            )


def _refuse_fewer_headings(path: Path, dialect: Dialect, above: list[_Line], width: int) -> None:
    """Refuse a table with more columns than headings, whose commas may be decimal.

    Raises:
        ValueError: the message has the headings.
    """
    headings = _headings(dialect, above[-1].text)[0] if above and dialect.doubtful else []
    title = len(headings) == 1 and " " in headings[0]
    if headings and not title and len(headings) < width:
        raise ValueError(
            f"{path.name}: expected a heading for each of the {counted(width, 'column')}, found "
            f"{counted(len(headings), 'heading')} in line {above[-1].index}, {above[-1].shown}: some commas "
            "may be decimal. Have the program write points, or semicolons between the numbers, or take "
            "(file, function)."
        )


def _refuse_units(path: Path, column: str, behind: list[list[str]]) -> None:
    """Refuse a column whose numbers are in several units, as the words behind them say.

    Raises:
        ValueError: naming them.
    """
    words = list(dict.fromkeys(word for words in behind for word in words))
    if len(words) > 1 and all(map(is_unit, words)):
        raise ValueError(
            f"{path.name}, column {column}: expected numbers in one unit, got {', '.join(words[:4])} behind "
            "them. Have the program write one unit, or take (file, function)."
        )


def _first_of_numbers(lines: list[_Line]) -> tuple[int, int]:
    """Find the first line of the table below titles and headings, and the column count of most lines."""
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
    """Say whether a line above the table's first whole line belongs to it, with something wrong in it."""
    asterisks = len(words) == width and set("".join(words)) == {"*"}
    return asterisks or (bool(words) and all(map(is_number, words)))


def _place(path: Path, dialect: Dialect, heading: str, above: list[_Line], width: int) -> int:
    """The index of the column with a heading, which the lines above the numbers leave no doubt of.

    Raises:
        ValueError: saying what headings there are, and for how many columns.
    """
    mentions: list[tuple[_Line, list[str], int | None]] = []
    for line in above:
        ways = _headings(dialect, line.text)
        fields = next((way for way in ways if len(way) == width), ways[0])
        if any(heading in way for way in ways):
            certain = len(fields) == width and fields.count(heading) == 1
            mentions.append((line, fields, fields.index(heading) if certain else None))
    mend = "Give the column's number, from 1."
    if not mentions:
        text = "; ".join(", ".join(_headings(dialect, line.text)[0]) for line in above)[:200]
        raise ValueError(
            f"{path.name}: expected a column {heading!r} in a line above the numbers, found "
            f"{f'the headings {text}' if text else 'no headings'}, and {counted(width, 'column')}. "
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
    if {column for _, _, column in mentions} - {None, place}:
        raise ValueError(
            f"{path.name}: expected {heading!r} in one line above the numbers, found it in lines "
            f"{', '.join(str(line.index) for line, _, _ in mentions)}, for different columns. {mend}"
        )
    return place


def _headings(dialect: Dialect, text: str) -> list[list[str]]:
    """The ways to read a line as headings, the plainest first."""
    text = text.strip()
    text = text.lstrip("# \t") if text.startswith("#") else text
    if dialect.separator:
        ways = [next(csv.reader([text], delimiter=dialect.separator, skipinitialspace=True), [])]
    else:
        bare = text.partition(" #")[0]
        ways = [bare.split(), re.split(r"\t+|\s{2,}", bare), bare.strip("|").split("|")]
    stripped = [[field.strip(" \t\u00a0\"'") for field in way] for way in ways]
    return [way[:-1] if len(way) > 1 and not way[-1] else way for way in stripped]
