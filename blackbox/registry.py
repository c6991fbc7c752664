"""Targets: `module:Class`, `file.py:Class` or a name for one of them, and the black box that they name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from blackbox import named_code
from blackbox.box_group import BoxGroup
from blackbox.checks import nearest
from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction
from blackbox.registry_arguments import call


@dataclass(frozen=True)
class Target:
    """The code that a text names; `target_of` makes it once, so that all users of it mean the same code.

    Attributes:
        place: A file, by its absolute path, or a module, by its name.
        attribute: The name in it; "" for the only thing of its kind in a file. A module without a name is a
            text that names nothing, as `find` says.
        installed: Whether an installed package names it, so that no folder can hold its module.
    """

    place: Path | str
    attribute: str = ""
    installed: bool = False

    def __str__(self) -> str:
        """Return a text that names it."""
        return f"{self.place}:{self.attribute}" if self.attribute else str(self.place)


def target_of(text: str, names: Mapping[str, str] | None = None) -> Target:
    """Parse the name of a target; nothing is looked up, imported or executed.

    Args:
        text: A name, `module:Name`, `file.py:Name`, or `file.py`.
        names: name -> the `module:Class` that it means.
    """
    installed = text in (names or {})
    text = (names or {}).get(text, text)
    place, _, attribute = (text, "", "") if text.endswith(".py") else text.rpartition(":")
    if place and (attribute or place == text):
        if not place.endswith(".py"):
            return Target(place, attribute, installed)
        try:
            return Target(Path(place).resolve(), attribute)
        except (OSError, RuntimeError, ValueError):  # such as a null byte
            pass
    return Target(text)


def make(target: str | Target, arguments: Mapping[str, Any], names: Mapping[str, str]) -> BlackBoxFunction:
    """The black box that a target names; see `make_any`.

    Raises:
        ConfigurationError: the target is a group of black boxes, or no black box.
    """
    box = make_any(target, arguments, names)
    if isinstance(box, BoxGroup):
        raise ConfigurationError(
            f"{target}: expected one BlackBoxFunction, got {box!r}, which has several: "
            f"{', '.join(box.named_boxes)}. A program that calls the network can be checked, not served."
        )
    return box


def make_any(
    target: str | Target, arguments: Mapping[str, Any], names: Mapping[str, str]
) -> BlackBoxFunction | BoxGroup:
    """The black box that a target names, or the group of them.

    Args:
        target: a name, `module:Class` or `file.py:Class`, or its `Target`. In the place of the class there
            may be a function that makes a black box, or a black box; `file.py` alone means its only class.
        arguments: the arguments of the class or function.
        names: name -> the `module:Class` that it means.

    Raises:
        ConfigurationError: there is no such thing, it makes no black box, or the arguments do not fit.
    """
    named = find(target_of(target, names) if isinstance(target, str) else target, names)
    if isinstance(named, BlackBoxFunction | BoxGroup):
        if arguments:
            raise ConfigurationError(
                f"{target}: expected no arguments for a black box that is made already, got "
                f"{', '.join(arguments)}. Name its class instead."
            )
        return named
    if not callable(named):
        raise ConfigurationError(
            f"{target}: expected a BlackBoxFunction or something that makes one, got {type(named).__name__}. "
            "Name a class, a function or a black box of it."
        )
    box = call(str(target), named, arguments)
    if not isinstance(box, BlackBoxFunction | BoxGroup):
        raise ConfigurationError(
            f"{target}: expected it to make a BlackBoxFunction, got {type(box).__name__}. "
            "Name a subclass, or a function that returns an instance of one."
        )
    return box


def find(target: str | Target, names: Mapping[str, str], base: type | None = None) -> Any:
    """The object that a target names: a class, a function or a value.

    Args:
        target: `module:Name` or `file.py:Name`, or its `Target`; `file.py` alone means its only black box.
        names: the known names, for the message.
        base: the class whose subclasses are wanted, for the message; None for black boxes and functions,
            which may make one.

    Raises:
        ConfigurationError: there is no such module, file or name.
    """
    if isinstance(target, str):
        target = target_of(target)
    place, attribute = target.place, target.attribute
    if isinstance(place, str) and not attribute:
        raise ConfigurationError(
            f"{place!r}: expected a name, module:Class or file.py:Class. {nearest(place, sorted(names))}"
        )
    if not attribute:
        return only_class(target, BlackBoxFunction, "BlackBoxFunction")
    module = module_of(target)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            kind = f", a subclass of {base.__name__}" if base is not None else ""
            raise ConfigurationError(
                f"{place}: expected it to have {attribute!r}{kind}. "
                f"{nearest(attribute, _meant(module, base), 'It has')}"
            )
        value = getattr(value, part)
    return value


def module_of(target: Target) -> ModuleType:
    """The module that a target is in; its code is executed.

    Raises:
        ConfigurationError: There is no such file or module.
    """
    place = target.place
    return _from_file(place) if isinstance(place, Path) else _from_name(place, target.installed)


def _from_name(name: str, installed: bool) -> ModuleType:
    if name.count(".") > 100:  # importing it would end in Python's limit on calls in calls
        raise ConfigurationError(f"{name!r}: expected the name of a module, got one with too many dots.")
    try:
        return named_code.from_name(name, None if installed else Path.cwd())
    except ModuleNotFoundError as error:
        if error.name is None or f"{name}.".startswith(f"{error.name}."):
            where = "that is installed" if installed else "that is installed or in this folder"
            raise ConfigurationError(
                f"{name}: expected a module {where}, found none. "
                "Give the file instead, as in path/to/file.py:Class."
            ) from None
        raise
    except (ValueError, TypeError) as error:  # such as "a..b", or a relative name
        raise ConfigurationError(f"{name!r}: expected the name of a module ({error}).") from None


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    if path.suffix != ".py" or not os.path.isfile(path):  # which, unlike a path's, takes one of any length
        raise ConfigurationError(f"{path}: expected a Python file, found none. Check the path.")
    return named_code.from_file(path)


def only_class(target: Target, base: type, name: str) -> Any:
    """The only subclass of a class that a file or module defines itself; its code is executed.

    A class that has several names there is one.

    Args:
        target: The file or the module.
        base: the class.
        name: the name of the class in messages.

    Raises:
        ConfigurationError: there is no such file or module, or it defines none or several.
    """
    place, module = target.place, module_of(target)
    candidates = (kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, base))
    subclasses = list(dict.fromkeys(kind for kind in candidates if kind.__module__ == module.__name__))
    if len(subclasses) != 1:
        named = ", ".join(kind.__name__ for kind in subclasses) or "none"
        objects = _meant(module, None) if base is BlackBoxFunction and not subclasses else []
        if objects:
            mend = f"Name a function that makes one, {place}:NAME. It has {', '.join(objects)}."
        else:
            mend = f"Write {place}:CLASS." if subclasses else "Write one there, or name another file."
        raise ConfigurationError(f"{place}: expected one subclass of {name}, found {named}. {mend}")
    return subclasses[0]


def _meant(module: ModuleType, base: type | None) -> list[str]:
    """Names of a module that may be meant: what it defines itself, not what it imports."""

    def fits(value: object) -> bool:
        if inspect.isclass(value):
            return issubclass(value, base or BlackBoxFunction) and value.__module__ == module.__name__
        makes = inspect.isfunction(value) and value.__module__ == module.__name__
        return base is None and (makes or isinstance(value, BlackBoxFunction))

    return sorted(name for name, value in vars(module).items() if not name.startswith("_") and fits(value))
