"""Models that learn otherwise than by themselves: in a few steps, for tests of what is around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from zo.tangents import Learning

NAMES = {field.name for field in fields(Learning)}


def learner(kind: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """A model of a kind, with settings of its `Learning` among its own."""
    learning = {name: value for name, value in settings.items() if name in NAMES}
    others = {name: value for name, value in settings.items() if name not in NAMES}
    return kind(*arguments, learning=replace(kind.LEARNING, **learning), **others)
