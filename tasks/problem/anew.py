"""A problem is made anew by each run, resume and worker: what its settings do not say is refused here.

All of these have the class, the settings and the folder of data, and nothing else (decision 156).
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from tasks.configuration import Config
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
        "`class Config(tasks.Config): k: float = 2.0` under @dataclass(frozen=True), and read self.config.k. "
        "Make what follows from settings in box, data or a functools.cached_property."
    )


def refuse_config(kind: type, config: Any, wanted: Any) -> None:
    """Refuse settings that are not of a problem's `Config`, which are all that a run writes down.

    Raises:
        ConfigurationError: They are of another class, or that class would ignore what is written in it.
    """
    name = f"{kind.__name__}.Config"
    refuse_ignored(kind, wanted)
    if type(config) is not wanted:
        raise ConfigurationError(
            f"{kind.__name__}: expected settings of {name}, got {config!r}. Give settings by name, as in "
            f"{kind.__name__}(steps=100), or an object of that class."
        )


def refuse_ignored(kind: type, wanted: Any) -> None:
    """Refuse a `Config` of a problem in which something is written that Python would not make a setting.

    Raises:
        ConfigurationError: It is no dataclass of all settings, or a class in it is not decorated, or gives a
            setting a value and no type.
    """
    name = f"{kind.__name__}.Config"
    above = "Write @dataclass(frozen=True) above `class Config(tasks.Config)`."
    if not (isinstance(wanted, type) and dataclasses.is_dataclass(wanted)):
        raise ConfigurationError(f"{name}: expected a dataclass, got {wanted!r}. {above}")
    if not issubclass(wanted, Config):
        raise ConfigurationError(
            f"{name}: expected a subclass of tasks.Config, which has steps, batch and the rest, got "
            f"{wanted!r}. {above}"
        )
    settings = {field.name for field in dataclasses.fields(wanted)}
    for part in wanted.__mro__[: wanted.__mro__.index(Config)]:
        annotations = inspect.get_annotations(part)
        own = {key for key, value in vars(part).items() if not inspect.ismemberdescriptor(value)}  # no slots
        typed = [
            key
            for key, said in annotations.items()
            if "ClassVar" not in str(said) and (key in own or key not in settings)
        ]
        if typed and "__dataclass_fields__" not in vars(part):
            raise ConfigurationError(
                f"{name}: expected @dataclass above the class that has settings, got none above "
                f"{part.__qualname__}, whose {', '.join(typed)} would be ignored. {above}"
            )
        for key in sorted(settings & own - annotations.keys()):
            raise ConfigurationError(
                f"{name}: expected a type for each setting, got {key} = {vars(part)[key]!r}, which would be "
                f"ignored. Write its type, as in {key}: {type(vars(part)[key]).__name__} = ..."
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
