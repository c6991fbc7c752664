"""The separator and decimal mark of a text's numbers, judged by all of its lines; doubts are refused."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from blackbox.adapters.command.numbers import NARROW, is_number, repeated

_COMMENT = re.compile(r"(?<!1\.)#(?!N/A|[A-Z]+(?:/0)?[!?])")  # not that of 1.#QNAN and of #DIV/0!
# 1 234 with a narrow space is one word, and no number
_BETWEEN = re.compile(rf"[^\S{NARROW}]+")
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=([,;\t])\"?\s*", re.IGNORECASE)  # as spreadsheets write it
_WITH_COMMA = re.compile(r"[-+]?(?:\d+,\d*|,\d+)(?:[eEdD][-+]?\d+)?")
_MAY_BE_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
_GLUED, _SPACED = re.compile(r"\d,[-+]?\d"), re.compile(r",\s+\S")
# -0,0858 and 12,05: an integer that no program writes, behind a comma without a space
_LIKE_FRACTION = re.compile(r"(?:^|[,\s])(?:[-+]0,\d|[-+]?\d+,0\d)")


@dataclass(frozen=True)
class Dialect:
    """The notation of a text's numbers.

    Attributes:
        separator: "," or ";" or a tab; "" for white space.
        decimal: "." or ",".
        doubtful: whether commas separate numbers without points: these commas might be decimal.
    """

    separator: str
    decimal: str = "."
    doubtful: bool = False

    def words(self, line: str, most: int = 100_000) -> list[str]:
        """The words of a line, decimals behind points; "#" begins a comment, and 2*0.0 is two words.

        Args:
            line: a line of the text.
            most: the most words, where some are repeated; the rest is left out.
        """
        words = self.fields(_COMMENT.split(line, maxsplit=1)[0])
        if self.decimal == ",":
            words = [word.replace(",", ".") if _WITH_COMMA.fullmatch(word) else word for word in words]
        if "*" in line:
            words = list(islice((word for field in words for word in repeated(field, most)), most))
        return words

    def fields(self, line: str) -> list[str]:
        """Split a line at its separators, without changes, and without empty fields at its end."""
        if not self.separator:
            return [word for word in _BETWEEN.split(line) if word.strip()]
        line = line.strip(" \r\n") if self.separator == "\t" else line.strip()
        reader = csv.reader([line], delimiter=self.separator, skipinitialspace=True)
        try:
            fields = [field.strip() for field in next(reader, [])]
        except csv.Error as error:
            raise ValueError(f"expected numbers, got {line[:80]!r}, which cannot be read: {error}.") from None
        while fields and not fields[-1]:
            fields.pop()
        return fields


def lines_of(text: str) -> list[str]:
    """The lines of a text; the first, if it does nothing but name the separator, is empty."""
    lines = re.split(r"\r\n|\r|\n", text)
    return ["", *lines[1:]] if _SEPARATOR_LINE.fullmatch(lines[0]) else lines


def dialect_of(path: Path, text: str, floating: bool) -> Dialect:
    """Find the notation of a text's numbers: white space between them, but in .csv.

    A .csv file has semicolons or tabs if there are numbers between these, perhaps with decimal commas; else
    it has commas, with decimal points.

    Args:
        path: the path of the text.
        text: the whole text.
        floating: whether the numbers that are wanted are floats.

    Raises:
        ValueError: commas may be decimal, or may not.
    """
    if path.suffix.lower() != ".csv":
        return Dialect("")
    lines = [line for line in (_COMMENT.split(line)[0] for line in lines_of(text)) if re.search(r"\d", line)]
    named = _SEPARATOR_LINE.fullmatch(text[:20].partition("\n")[0])
    separator = named[1] if named else _separator_of(path, lines)
    fields = [field for line in lines for field in Dialect(separator).fields(line)]
    points = [field for field in fields if "." in field and is_number(field)]
    commas = [field for field in fields if "," in field and _WITH_COMMA.fullmatch(field)]
    if commas and points:
        raise ValueError(
            f"{path.name}: expected one sign for decimals, got {points[0]!r} and {commas[0]!r}. Have the "
            "program write points alone, or take (file, function)."
        )
    if commas and all(map(_MAY_BE_THOUSANDS.fullmatch, commas)):
        raise ValueError(
            f"{path.name}: expected numbers with one meaning, got {commas[0]!r}, whose comma may stand for "
            "decimals or for thousands. Have the program write points, or take (file, function)."
        )
    doubtful = separator == "," and not points and not commas and floating
    if doubtful:
        _refuse_decimal_commas(path, lines)
    return Dialect(separator, "," if commas else ".", doubtful)


def _separator_of(path: Path, lines: Sequence[str]) -> str:
    """The sign that has the most numbers between it, and the fewest fields with another such sign in them.

    Raises:
        ValueError: two have as many.
    """
    scores = {sign: _score(sign, lines) for sign in ",;\t" if any(sign in line for line in lines)} or {",": 0}
    best = [sign for sign, score in scores.items() if score == max(scores.values())]
    if len(best) > 1:
        line = next((line for line in lines if all(sign in line for sign in best)), lines[0])
        raise ValueError(
            f"{path.name}: expected one sign between numbers, got {line[:80].strip()!r}, which can be read "
            "in two ways. Take (file, function)."
        )
    return best[0]


def _score(separator: str, lines: Sequence[str]) -> int:
    separators = re.compile(r"[,;\t]")
    fields = [field for line in lines for field in Dialect(separator).fields(line)]
    numbers = [field for field in fields if is_number(field) or _WITH_COMMA.fullmatch(field)]
    return len(numbers) - sum(separators.search(field) is not None for field in set(fields) - set(numbers))


def _refuse_decimal_commas(path: Path, lines: Sequence[str]) -> None:
    """Refuse a text with commas alone if some look like decimal commas.

    Raises:
        ValueError: the message has a line with such commas.
    """
    for line in lines:
        bare = re.sub(r'"[^"]*"', '""', line)
        if (_GLUED.search(bare) and _SPACED.search(bare)) or _LIKE_FRACTION.search(bare):
            raise ValueError(
                f"{path.name}: expected commas between numbers with decimal points, got "
                f"{line[:80].strip()!r}, where some commas may be decimal. Have the program write points, or "
                "semicolons between the numbers, or take (file, function)."
            )
