"""The problems by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.tangents.problem import Problem


def problems(size: str) -> dict[str, Callable[[], Problem]]:
    """By name; made when they are asked for, since some compute a reference first."""
    from benchmarks.tangents.corrections import correction, systems

    if size == "paper":
        return {}
    return {name: partial(correction, system, ()) for name, system in systems().items()}
