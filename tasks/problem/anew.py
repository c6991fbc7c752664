"""A problem is made anew by each run, resume and worker: what its settings do not say is refused here.

All of these have the class, the settings and the folder of data, and nothing else (decision 156).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tasks.errors import ConfigurationError, ProblemError

OF_EVERY_PROBLEM = ("config", "folder", "_surroundings")  # attributes that an object made anew has
ASSIGNED = "_assigned"  # the attribute with the names of all others


def refuse_construction(kind: type, base: type) -> None:
    """Refuse a class that is constructed in a way of its own, which no run would repeat.

    Args:
        kind: The problem's class.
        base: `tasks.Problem`.

    Raises:
        ProblemError: It has an `__init__` or a `__new__`, or `@dataclass` has written one.
    """
    usual = {"__init__": vars(base)["__init__"], "__new__": object.__new__}
    overrides = [name for name, method in usual.items() if getattr(kind, name) is not method]
    if not overrides:
        return
    came = "@dataclass above it, which writes an __init__" if dataclasses.is_dataclass(kind) else overrides[0]
    raise ProblemError(
        f"{kind.__name__}: expected a problem that is made of its settings alone, since every run, resume "
        f"and worker makes it anew, got a class with {came}. Declare what it is given in its Config, as in "
        "`class Config(tasks.Config): k: float = 2.0`, and read self.config.k. Make what follows from "
        "settings in box, data or a functools.cached_property."
    )


def refuse_config(kind: type, config: Any, wanted: Any) -> None:
    """Refuse settings that are not of a problem's `Config`, which are all that a run writes down.

    Raises:
        ConfigurationError: They are of another class.
    """
    name = f"{kind.__name__}.Config"
    if not (isinstance(wanted, type) and dataclasses.is_dataclass(wanted)):
        raise ConfigurationError(
            f"{name}: expected a dataclass, got {wanted!r}. Write @dataclass(frozen=True) above "
            "`class Config(tasks.Config)`."
        )
    if type(config) is not wanted:
        raise ConfigurationError(
            f"{kind.__name__}: expected settings of {name}, got {config!r}. Give settings by name, as in "
            f"{kind.__name__}(steps=100), or an object of that class."
        )


def refuse_state(problem: object) -> None:
    """Refuse an object that was given more than its settings: attributes set from outside, methods replaced.

    Raises:
        ProblemError: It was.
    """
    assigned = vars(problem).get(ASSIGNED, ())
    if assigned:
        kind = type(problem).__name__
        names = ", ".join(map(repr, sorted(assigned)))
        raise ProblemError(
            f"{kind}: expected a problem that is made of its settings alone, since every run, resume and "
            f"worker makes it anew, got an object with {names} set. Declare settings in {kind}.Config, and "
            f"read self.config; write methods in the class. If a method of its own set it, give a new "
            f"{kind}(...)."
        )
