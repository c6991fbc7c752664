"""Checks of arguments, one for each kind of setting, and the known name nearest to an unknown one.

Each `check_*` takes the `owner`, the class or function that received the value, and the argument's `name`,
both for the message. It returns the value, or raises a `ConfigurationError` that says what was expected, what
came, and how to mend it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from blackbox.errors import ConfigurationError


def check_count(owner: str, name: str, value: Any, least: int = 1) -> int:
    """Refuse what is not an `int` of at least `least`; a bool is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(
            f"{owner}, {name}: expected a whole number >= {least}, got {value!r}. Give an int in that range."
        )
    return value


def check_number(
    owner: str,
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    mend: str = "Give an int or a float in that range.",
) -> float:
    """Refuse what is not a finite number within bounds; a bool is none.

    It is to be >= `least`, > `above`, <= `most` and < `below`; `mend` ends the message.
    """
    if not (is_finite(value) and least <= value <= most and above < value < below):
        low, high = max(least, above), min(most, below)
        if math.isfinite(low) and math.isfinite(high):
            words = f" in {'[' if least > above else '('}{low:g}, {high:g}{']' if most < below else ')'}"
        elif math.isfinite(low):
            words = f" {'>=' if least > above else '>'} {low:g}"
        else:
            words = f" {'<=' if most < below else '<'} {high:g}" if math.isfinite(high) else ""
        raise ConfigurationError(f"{owner}, {name}: expected a finite number{words}, got {value!r}. {mend}")
    return float(value)


def is_finite(value: object) -> bool:
    """Say whether it is a finite number that a float can hold; a bool is none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        return False


def check_positive(owner: str, name: str, value: Any) -> float:
    """Refuse what is not a finite number above zero; a bool is none."""
    return check_number(owner, name, value, above=0)


def check_fraction(owner: str, name: str, value: Any) -> float:
    """Refuse what is not a number from 0 to 1, both included; a bool is none."""
    return check_number(owner, name, value, least=0, most=1, mend="Give a fraction of one, such as 0.5.")


def check_flag(owner: str, name: str, value: Any) -> bool:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"{owner}, {name}: expected True or False, got {value!r}. Give one of the two."
        )
    return value


def check_choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> str:
    """Refuse what is not one of these words."""
    if not isinstance(value, str) or value not in choices:
        mend = nearest(value, choices, "Choose from") if isinstance(value, str) else "Give one as a text."
        raise ConfigurationError(
            f"{owner}, {name}: expected one of {', '.join(choices)}, got {value!r}. {mend}"
        )
    return value


def nearest(name: str, names: Iterable[str], what: str = "The names are") -> str:
    """The sentence that ends a message about an unknown name: did you mean another?

    Args:
        name: the name that came.
        names: the known names, in the order in which they are listed.
        what: the beginning of the sentence that lists all names, where none is near.
    """
    known_names = list(names)
    close = difflib.get_close_matches(name, known_names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"{what} {', '.join(known_names) or 'none'}."
