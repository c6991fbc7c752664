"""Numbers and their units as programs write them, and the text of a file."""

from __future__ import annotations

import codecs
import math
import re
from pathlib import Path

# Fortran writes 1.234-103 where an exponent has three digits; Microsoft's C writes 1.#QNAN and -nan(ind)
_NO_LETTER = re.compile(r"([-+]?(?:\d?\.\d*))([-+]\d{3})")
_NO_NUMBER = re.compile(r"[-+]?(?:1\.#(?:QNAN|SNAN|IND)\d*|nan\([\w-]*\))", re.IGNORECASE)
_INFINITE = re.compile(r"([-+]?)1\.#INF\d*", re.IGNORECASE)
# as Fortran's list-directed output writes equal numbers: 2*0.0
_REPEATED = re.compile(
    r"(?<![^\s,;\[({:=])([1-9]\d{0,8})\*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD]?[-+]?\d+)?)(?![^\s,;\])}])"
)
# units that a program may change from one number to the next: 350 mm for 0.35 m
_BASE = r"(?:m|s|A|K|N|Pa|W|Wh|J|cal|V|Hz|g|L|l|bar|eV|B|bit|F|H|C|Ohm|Ω|S|mol|rad)"
_TIMES = r"(?:min|mins|minutes?|h|hrs?|hours?|d|days?)"
_LONG = r"(?:pico|nano|micro|milli|centi|kilo|mega|giga|tera)[a-z]+"
_SCALED = re.compile(
    rf"(?!kg\b|pH\b)(?:(?:[pnuµμmckMGT]|h(?=Pa)){_BASE}|g|{_TIMES}|{_LONG}|[KMGT]iB|KB)(?=$|[\d/^*·²³\s-])"
)
_UNIT = re.compile(rf"(?:kg|{_TIMES}|(?:[pnuµμmckKMGT]|h(?=Pa))?i?{_BASE})(?=$|[\d/^*·²³\s-])")


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


def is_unit(word: str) -> bool:
    """Whether a word is a unit, with or without a prefix."""
    return _UNIT.match(word) is not None


def repeats_written_out(text: str, most: int) -> str:
    """A text with Fortran's repeat counts written out, 2*0.0 as 0.0 0.0, each at most so many times."""
    if "*" not in text:
        return text
    return _REPEATED.sub(lambda match: " ".join([match[2]] * min(int(match[1]), most)), text)


def repeated(word: str, most: int) -> list[str]:
    """The words that one stands for: 2*0.0 for 0.0 and 0.0, each at most so many times; else itself."""
    match = _REPEATED.fullmatch(word)
    return [match[2]] * min(int(match[1]), most) if match else [word]


def text_of(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 as its mark says; without the mark, other bytes replaced."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")
