"""An array in lines of text: words, numbers as C and Fortran write them, and what line lengths say."""

from __future__ import annotations

import codecs
import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.words import counted

# Fortran writes 1.234-103 where an exponent has three digits; Microsoft's C writes 1.#QNAN and -nan(ind)
_NO_LETTER = re.compile(r"([-+]?(?:\d?\.\d*))([-+]\d{3})")
_NO_NUMBER = re.compile(r"[-+]?(?:1\.#(?:QNAN|SNAN|IND)\d*|nan\([\w-]*\))", re.IGNORECASE)
_INFINITE = re.compile(r"([-+]?)1\.#INF\d*", re.IGNORECASE)
# as Fortran's list-directed output writes equal numbers: 2*0.0
_REPEATED = re.compile(
    r"(?<![^\s,;\[({:=])([1-9]\d{0,8})\*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD]?[-+]?\d+)?)(?![^\s,;\])}])"
)
# units with a prefix, which a program may change from one number to the next: 350 mm for 0.35 m
_SCALED = re.compile(
    r"(?!kg\b|pH\b)(?:(?:[pnuµμmckMGT]|h(?=Pa))(?:m|s|A|K|N|Pa|W|Wh|J|V|Hz|g|L|l|bar|eV|B|bit|F|H|C|Ohm|Ω|S|mol|rad)"
    r"|g|min|[KMGT]iB|KB)(?=$|[\d/^*·²³\s-])"
)
_COMMENT = re.compile(r"(?<!1\.)#")  # not that of 1.#QNAN


def number(word: str, floating: bool) -> float | int:
    """What a word says, also with an exponent as Fortran writes it: 1.0D+03, 1.234-103.

    Raises:
        ValueError: it is no number.
    """
    if "_" in word:  # 1_000 is one in Python only
        raise ValueError(f"expected a number, got {word!r}.")
    if not floating:
        try:
            return int(word)
        except ValueError:  # 3.0 is whole
            value = number(word, True)
            if not abs(value) < 2**53 or value != int(value):
                raise ValueError(f"expected a whole number, got {word!r}.") from None
            return int(value)
    try:
        return float(word)
    except ValueError:
        word = word.strip()
        if _NO_NUMBER.fullmatch(word):
            return math.nan
        if infinite := _INFINITE.fullmatch(word):
            return float(f"{infinite[1]}inf")
        if split := _NO_LETTER.fullmatch(word):  # has one digit in front of the point; else it is a range
            value = float(f"{split[1]}e{split[2]}")
            if math.isinf(value) or (value == 0) != (float(split[1]) == 0):
                raise ValueError(f"expected a number of float64, got {word!r}.") from None
            return value
        return float(re.sub("[dD]", "e", word, count=1)) if word[:1] in "+-.0123456789" else float(word)


def is_number(word: str) -> bool:
    """Whether a word is one."""
    try:
        number(word, True)
    except ValueError:
        return False
    return True


def is_scaled_unit(word: str) -> bool:
    """Whether a word is a unit with a prefix, such as mm or kJ/kg; kg is none."""
    return _SCALED.match(word) is not None


def repeats_written_out(text: str, most: int) -> str:
    """A text with Fortran's repeat counts written out, 2*0.0 as 0.0 0.0, each at most so many times."""
    if "*" not in text:
        return text
    return _REPEATED.sub(lambda match: " ".join([match[2]] * min(int(match[1]), most)), text)


def text_of(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 as its mark says; without the mark, other bytes replaced."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def words_of(path: Path, line: str) -> list[str]:
    """The words of a line of numbers: between commas in .csv, else between spaces; "#" begins a comment."""
    line = _COMMENT.split(line, maxsplit=1)[0]
    if path.suffix.lower() != ".csv":
        return line.split()
    words = [word.strip() for word in next(csv.reader([line.strip()], skipinitialspace=True), [])]
    while words and not words[-1]:  # a comma at the end of the line
        words.pop()
    return words


def may_be_headings(words: list[str]) -> bool:
    """Whether a line is of words, such as headings or a title.

    It is not if beside numbers it has only what stands for one, as Fortran's "*****" where one does not fit.
    """
    others = [word for word in words if not is_number(word)]
    return any(re.search("[^\\W\\d_]", word) for word in others) or len(others) == len(words) > 0


def commas(path: Path, line: str) -> str:
    """What to do about a line that has commas between numbers, in a file where spaces should be; or ""."""
    if path.suffix.lower() == ".csv" or not re.search("[,;|]", line):
        return ""
    parts = [part for word in words_of(path, line) for part in re.split("[,;|]", word) if part]
    if not parts or not all(map(is_number, parts)):
        return ""
    if "," in line:
        return (
            " Commas separate numbers in .csv, spaces in .txt and .dat: rename it, or take (file, function)."
        )
    return " Only spaces separate numbers in .txt and .dat: for anything else take (file, function)."


def read_table(path: Path, shape: tuple[int, ...], floating: bool) -> np.ndarray[Any, Any]:
    """The numbers of a text, in C order.

    Args:
        path: .csv has commas between numbers, any other spaces. What follows "#" is left out, and so is a
            first line of words.
        shape: of the array. A line has a row of the last axis, or several whole ones; or a part of one, as
            programs write that begin a new line after so many numbers.
        floating: whether the numbers are floats.

    Raises:
        ValueError, OSError: a word is no number; there are other than so many; or the lines are as long as
            those of an array of another shape.
    """
    count = math.prod(shape)
    numbers: list[float] = []
    lengths: list[int] = []  # of the lines
    skipped = ""
    with path.open(encoding="utf-8") as file:
        for index, line in enumerate(file):
            words = words_of(path, line)
            if not words:
                continue
            try:
                numbers += [number(word, floating) for word in words]
                lengths.append(len(words))
            except ValueError:  # the first line that is not empty may say what the columns are
                hint = commas(path, line)
                if lengths or skipped or hint or not may_be_headings(words):
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
