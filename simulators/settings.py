"""Checks of the settings that simulators share."""

from __future__ import annotations

import math
from typing import TypeGuard

from blackbox.errors import ConfigurationError


def check_whole(owner: str, name: str, value: object, least: int = 1) -> None:
    """Refuse what is not a whole number of `least` or more (ConfigurationError)."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(
            f"{owner}, {name}: expected a whole number, {least} or more, got {value!r}. "
            "Convert it with int(), or take a larger one."
        )


def check_number(owner: str, name: str, value: object) -> None:
    """Refuse what is not a finite number (ConfigurationError)."""
    if not _finite(value):
        raise _wrong(owner, name, "a finite number", value)


def check_above_zero(owner: str, name: str, value: object) -> None:
    """Refuse what is not a finite number above 0 (ConfigurationError)."""
    if not (_finite(value) and value > 0):
        raise _wrong(owner, name, "a finite number above 0", value)


def check_range(owner: str, name: str, value: object, least: float, most: float = math.inf) -> None:
    """Refuse what is not a finite number from `least` to `most` (ConfigurationError)."""
    if not (_finite(value) and least <= value <= most):
        expected = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
        raise _wrong(owner, name, f"a finite number, {expected}", value)


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(owner: str, name: str, expected: str, value: object) -> ConfigurationError:
    return ConfigurationError(
        f"{owner}, {name}: expected {expected}, got {value!r}. Give an int or a float in that range."
    )
