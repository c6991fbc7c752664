"""Words of messages: a count with its noun, a length of time."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A whole number and what it counts: "1 query", "2,000 queries", "0 rows".

    Args:
        number: The number.
        noun: The noun in the singular, perhaps with an adjective, as in "perturbed row".
    """
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """A regular noun's plural: "queries" of "query", "boxes" of "box", "rows" of "row"."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def duration(seconds: float) -> str:
    """42 s, 3 min 10 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
