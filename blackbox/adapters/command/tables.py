"""An array in lines of text: numbers, headings above them, and shapes read from the lengths of lines."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.adapters.command.dialects import dialect_of, lines_of
from blackbox.adapters.command.numbers import is_number, number, text_of
from blackbox.words import counted

_RENAME = (
    " Commas separate numbers in .csv, spaces in .txt and .dat: rename it, or take (file, function), as "
    "where they are decimal."
)
BEHIND = (
    " Among numbers and behind them a line of words has to begin with '#': have the program write it so, or "
    "take (file, function)."
)
_ONE_LINE = (
    "Others above the numbers have to begin with '#': have the program write them so, or take columns one by "
    "one (file:1), which skip them, or (file, function)."
)


def may_be_headings(words: list[str]) -> bool:
    """Say whether a line is of words, such as headings or a title.

    It is not if beside numbers it has only what stands for one, as Fortran's "*****" where one does not fit.
    """
    no_numbers = [word for word in words if not is_number(word)]
    return any(re.search("[^\\W\\d_]", word) for word in no_numbers) or len(no_numbers) == len(words) > 0


def separators(path: Path, line: str) -> str:
    """Advise on a line of numbers with other signs between them than the file's name means; or ""."""
    bare = line.partition("#")[0]
    if path.suffix.lower() == ".csv":
        words = bare.split()
        spaced = len(words) > 1 and not re.search(r",\s|\s,|;", bare)
        spaced = spaced and all(is_number(word.replace(",", ".", 1)) for word in words)
        return _RENAME if spaced else ""
    parts = [part for part in re.split(r"[\s,;|]+", bare) if part]
    if not re.search("[,;|]", bare) or not parts or not all(map(is_number, parts)):
        return ""
    if "," in bare:
        return _RENAME
    return " Only spaces separate numbers in .txt and .dat: for anything else take (file, function)."


def words_alone(line: str, words: list[str]) -> bool:
    """Say whether a line is a title, a line of headings, a rule below them, or words such as "normal end"."""
    begins = re.match(r"\W*[^\W\d_]", line) is not None or set("".join(words)) <= set("-=_+|~")
    return begins and not is_number(words[0]) and may_be_headings(words)


def read_table(path: Path, shape: tuple[int, ...], floating: bool) -> np.ndarray[Any, Any]:
    """The numbers of a text, in C order.

    Args:
        path: the file. A .csv file has commas between numbers, or the separator that `dialect_of` finds; any
            other file has spaces. Text after "#" is left out, and so is a first line of words.
        shape: the shape of the array. A line has a row of the last axis, or several whole rows; or a part of
            one, as of programs that begin a new line after so many numbers.
        floating: whether the numbers are floats.

    Raises:
        ValueError, OSError: a word is no number; there are more or fewer numbers; or the lengths of the lines
            fit an array of another shape.
    """
    count = math.prod(shape)
    numbers: list[float] = []
    lengths: list[int] = []  # of the lines
    skipped = ""
    text = text_of(path)
    dialect = dialect_of(path, text, floating)
    for index, line in enumerate(lines_of(text)):
        words = dialect.words(line, most=count + 1)
        if not words:
            continue
        try:
            numbers += [number(word, floating) for word in words]
            lengths.append(len(words))
        except ValueError:  # the first line that is not empty may say what the columns are
            hint = separators(path, line)
            if lengths or skipped or hint or not may_be_headings(words):
                if not hint and words_alone(line, words):
                    hint = BEHIND if lengths else f"{skipped} {_ONE_LINE}"
                raise ValueError(
                    f"{path.name}: expected numbers in line {index + 1}, got {line[:80].strip()!r}.{hint}"
                ) from None
            skipped = f" Line {index + 1}, {line[:80].strip()!r}, was taken for headings."
        if len(numbers) > count:
            break
    if len(numbers) != count:
        count_read = "more" if len(numbers) > count else str(len(numbers))
        raise ValueError(
            f"{path.name}: expected {counted(count, 'number')} for shape {shape}, found {count_read}."
            f"{skipped}"
        )
    _refuse_other_shapes(path, shape, lengths)
    return np.array(numbers, np.float64 if floating else np.int64).reshape(shape)


def _refuse_other_shapes(path: Path, shape: tuple[int, ...], lengths: list[int]) -> None:
    """Refuse lines that are no rows of the last axis, though their numbers are as many as expected.

    Raises:
        ValueError: naming the shape that they look like.
    """
    axes = [size for size in shape if size != 1]
    if len(axes) < 2 or not lengths:
        return
    last, length = axes[-1], lengths[0]
    uniform = all(other == length for other in lengths)
    if uniform and length in (1, *(math.prod(axes[first:]) for first in range(len(axes)))):
        return
    if uniform and len(lengths) == last:  # as many lines as the last axis is long: surely not wrapped
        raise ValueError(
            f"{path.name}: expected lines of {counted(last, 'number')} for shape {shape}, found "
            f"{counted(last, 'line')} of {length}: the axes are the other way round. Give the output the "
            f"shape ({last}, {length})."
        )
    # a program that begins a new line after so many numbers, whatever the axes are
    wrapped = length < last and all(other == length for other in lengths[:-1]) and lengths[-1] <= length
    if not wrapped and (odd := _first_across(lengths, last)):
        several = ", ".join(map(str, lengths[:6])) + (", ..." if len(lengths) > 6 else "")
        raise ValueError(
            f"{path.name}: expected lines of {counted(last, 'number')}, the last axis of shape {shape}, "
            f"found lines of {several}: line {odd} of the numbers has the end of a row and the beginning of "
            "another. Correct the shape, or what the program writes; for such lines take (file, function)."
        )


def _first_across(lengths: list[int], last: int) -> int:
    """The first line, from 1, with the end of one row and the beginning of another; 0 if there is none."""
    begun = 0  # numbers of a row that lines above have
    for place, length in enumerate(lengths, start=1):
        if begun + length > last and (begun or length % last):
            return place
        begun = (begun + length) % last
    return 0
