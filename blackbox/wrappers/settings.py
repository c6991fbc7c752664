"""Checks that the settings of wrappers share."""

from __future__ import annotations

import math
from typing import Any

from blackbox.errors import ConfigurationError


def whole(owner: str, name: str, value: Any, least: int = 1) -> int:  # noqa: ANN401 - to be checked
    """A whole number >= `least`.

    Raises:
        ConfigurationError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(
            f"{owner}, {name}: expected a whole number >= {least}, got {value!r}. Convert it with int()."
        )
    return value


def amount(owner: str, name: str, value: Any, zero: bool = False) -> float:  # noqa: ANN401 - to be checked
    """A finite number > 0, or >= 0 with `zero`.

    Raises:
        ConfigurationError: it is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise ConfigurationError(
            f"{owner}, {name}: expected a finite number {'>=' if zero else '>'} 0, got {value!r}. "
            "Give it as an int or a float."
        )
    return float(value)
