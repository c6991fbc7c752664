"""One column of a table of text, by its number or its heading, as programs write beside a coordinate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.words import counted


def read_column(path: Path, column: str, shape: tuple[int, ...], floating: bool) -> np.ndarray[Any, Any]:
    """The numbers of a column, from the first line to the last, in the expected shape.

    Args:
        path: .csv has commas between columns, any other spaces. What follows "#" is left out, but for a line
            of headings. Words before the first line of numbers are skipped.
        column: its number, from "1", or its heading, which stands in a line above the numbers.
        shape: of the array, in C order.
        floating: whether the numbers are floats.

    Raises:
        ValueError, OSError: there is no such column, or it has other than so many numbers.
    """
    delimiter = "," if path.suffix.lower() == ".csv" else None
    place = int(column) - 1 if column.isdecimal() else None
    headings: list[str] = []  # of all lines that were read while the heading was looked for
    numbers: list[float] = []
    for index, line in _lines(path):
        if place is None:
            fields = [word.strip(" \t\r\n\"'") for word in line.lstrip("# \t").split(delimiter)]
            place = fields.index(column) if column in fields else None
            headings += fields
            continue
        words = line.partition("#")[0].split(delimiter)
        try:
            numbers.append(float(words[place]) if floating else int(words[place]))
        except (ValueError, IndexError):
            if numbers and line.partition("#")[0].strip():
                raise ValueError(
                    f"{path.name}: expected a number in column {column} of line {index + 1}, got "
                    f"{line[:80].strip()!r}."
                ) from None
    if place is None:
        raise ValueError(
            f"{path.name}: expected a column {column!r} in a line above the numbers, found "
            f"{', '.join(filter(None, headings))[:200] or 'nothing'}. Give its heading, or its number from 1."
        )
    if len(numbers) != math.prod(shape):
        raise ValueError(
            f"{path.name}, column {column}: expected {counted(math.prod(shape), 'number')} for shape "
            f"{shape}, found {len(numbers)}."
        )
    return np.array(numbers, np.float64 if floating else np.int64).reshape(shape)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        for index, line in enumerate(file):
            if line.strip():
                yield index, line
