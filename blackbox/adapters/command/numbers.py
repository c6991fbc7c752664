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
# also as Fortran (1.0D-3, 1.234-103) and Microsoft's C write it; `++` since digits are not to be tried in
# other portions, and not too many of them, or a text of digits alone is read again from each
NUMBER = (
    r"[-+]?(?:1\.#(?i:QNAN|SNAN|IND|INF)\d*+"
    r"|(?:\d{1,400}+\.\d*+|\.\d++)(?:[eEdD][-+]?\d++|[-+]\d{3}(?![\d.]))?|\d{1,400}+(?:[eEdD][-+]?\d++)?"
    r"|(?i:nan(?:\([\w-]*\))?+|inf(?:inity)?+)(?![^\W\d_]))"
)
LIKE = rf"(?:{NUMBER}|(?<!\*)\*++)"  # what a number begins with, or Fortran's asterisks where one has no room
# as Fortran's list-directed output writes equal numbers: 2*0.0
_COUNT = r"[1-9]\d{0,8}+"
_VALUE = r"[-+]?(?:\d++\.?+\d*+|\.\d++)(?:[eEdD]?+[-+]?+\d++)?+"
REPEATED = rf"(?<![^\s,;\[({{=:]){_COUNT}\*{_VALUE}(?![^\s,;\])}}])"
_REPEATED = re.compile(rf"({_COUNT})\*({_VALUE})")
# where a column has no room for a space: 1.0-200.5; not 2026-11-28
RUN_TOGETHER = re.compile(rf"(?=[^.]*\.)(?>{NUMBER})(?:(?=[-+])(?>{NUMBER}))++")
# units that a program may change from one number to the next: 350 mm for 0.35 m
_BASE = r"(?:m|s|A|K|N|Pa|W|Wh|J|cal|V|Hz|g|L|l|bar|eV|B|bit|F|H|C|Ohm|Ω|S|mol|rad)"
_TIMES = r"(?:min|mins|minutes?|h|hrs?|hours?|d|days?)"
_FOREIGN = r"[^\W\d_a-zA-ZÅåΩ\u2126]"  # a micro sign, or what is made of one in another code of characters
_LONG = r"(?:pico|nano|micro|milli|centi|kilo|mega|giga|tera)[a-z]+"
_SCALED = re.compile(
    rf"(?!kg\b|pH\b)(?:(?:[pnumckMGT]|{_FOREIGN}|h(?=Pa)){_BASE}|g|{_TIMES}|{_LONG}|[KMGT]iB|KB)"
    r"(?=$|[\d/^*·²³.\s-])"
)
_SCALE = re.compile(  # k alone, but not k = 5, k 0.5 nor k-omega
    r"(?:[kMGnuµμp]|(?i:hundred|thousand|million|billion|trillion|[mb]ln|bn|mill|mio|mrd|tsd))"
    r"(?![\w/-]|\s*[=:]|\s+[-+.\d])"
    r"|[eEdD]\s*[-+]?\d++(?!\.)|(?:[x\u00d7*·^]|\*\*|\\?times|\\cdot)\s*\d|10\^"  # a power of ten apart
)
# a space of this kind stands between thousands, or in front of a unit; it separates no numbers
NARROW = "\u00a0\u2007\u2009\u202f"
THOUSANDS = re.compile(rf"\d[{NARROW}]\d")
_UNIT = re.compile(rf"(?:kg|{_TIMES}|(?:[pnuµμmckKMGT]|h(?=Pa))?i?{_BASE})(?=$|[\d/^*·²³\s-])")


def number(word: str, floating: bool) -> float | int:
    """Parse a number, also with an exponent as Fortran writes it: 1.0D+03, 1.234-103.

    Raises:
        ValueError: it is no number.
    """
    if "_" in word:  # 1_000 is one in Python only
        raise ValueError(f"expected a number, got {word!r}.")
    if not floating:
        try:
            value, most = int(word), 2**63
        except ValueError:  # 3.0 is whole
            value, most = number(word, True), 2**53
        if not -most <= value < most or value != int(value):
            raise ValueError(f"expected a whole number, got {word!r}.")
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
    """Say whether a word is a number."""
    try:
        number(word, True)
    except ValueError:
        return False
    return True


def is_scaled(text: str) -> bool:
    """Say whether a text behind a number scales it: a unit with a prefix (mm, but not kg), k, Mio, x 10^6."""
    text = re.sub(r"^\s*(?:\[|\((?!mins?\b|\w\)))", "", text).lstrip()  # not (min), nor (a)
    unit = text.split(maxsplit=1)[0].rstrip(".,;:])}>") if text else ""
    return _SCALE.match(text) is not None or _SCALED.match(unit) is not None


def is_unit(word: str) -> bool:
    """Say whether a word is a unit, with or without a prefix."""
    return _UNIT.match(word) is not None


def repeats(word: str) -> int:
    """Return how many numbers a word stands for: 2*0.0 for two, any other for one."""
    match = _REPEATED.fullmatch(word)
    return int(match[1]) if match else 1


def repeated(word: str, most: int) -> list[str]:
    """The words that one stands for: 2*0.0 for 0.0 and 0.0, each at most so many times; else itself."""
    match = _REPEATED.fullmatch(word)
    return [match[2]] * min(int(match[1]), most) if match else [word]


def text_of(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 as its mark says; bytes that are neither are read as Latin-1."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    text = data.decode("utf-8-sig", errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: chr(ord(byte[0]) - 0xDC00), text)
