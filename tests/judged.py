"""`Judged`: the limits of a gradient with thresholds of trust, which tests alone set."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from zo.tangents import Limits
from zo.tangents.trust.thresholds import Thresholds


@dataclass(frozen=True)
class Judged(Limits):
    """Limits whose thresholds are a value of their own."""

    thresholds: Thresholds = field(default=Limits.thresholds)  # pyright: ignore


def names_of(kind: type) -> set[str]:
    """The names of a dataclass's fields."""
    return {field.name for field in fields(kind)}


def judged(limits: Limits = Judged(), **settings: Any) -> Judged:
    """Limits with some of them, or some of their thresholds, set."""
    names = names_of(Thresholds) & set(settings)
    thresholds = replace(limits.thresholds, **{name: settings.pop(name) for name in names})
    plain = {name: getattr(limits, name) for name in names_of(Limits)}
    return Judged(**{**plain, **settings, "thresholds": thresholds})


def gathered(**settings: Any) -> dict[str, Any]:
    """Settings of a gradient, of which those that are limits become one."""
    names = (names_of(Limits) | names_of(Thresholds)) & set(settings)
    limits = {name: settings.pop(name) for name in names}
    return {**settings, "limits": judged(settings.get("limits", Limits()), **limits)}
