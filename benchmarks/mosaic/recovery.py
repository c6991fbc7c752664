"""Recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SMALL = CI = None


def result(task: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """Later."""
    return {}


def table(found: Mapping[str, Any]) -> str:
    """Later."""
    return ""
