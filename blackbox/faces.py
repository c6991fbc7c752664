"""A package's face: its names are listed once, in `__init__.pyi`, and imported when they are first used.

    __getattr__, __all__ = named_by_stub(__name__)

Type checkers and editors read the stub, and so does this; what nobody asks for is not imported, so that the
command line answers at once.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def named_by_stub(package: str, parts: Sequence[str] = ()) -> tuple[Callable[[str], Any], list[str]]:
    """Make `__getattr__` and `__all__` of a package from the imports of its stub.

    Args:
        package: Its name; beside its `__init__.py` lies an `__init__.pyi` of lines
            `from module import name as name`. Its own modules may be among them: they are found, too, and
            are not in `__all__`, unless they are `parts`.
        parts: The package's own modules that `__all__` names too, and where an error looks for a name.
    """
    places = _places(package)

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}{_elsewhere(package, parts, name)}"
            )
        if places[name] == package:  # a module of it
            return import_module(f"{package}.{name}")
        value = getattr(import_module(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, sorted([*parts, *(name for name, place in places.items() if place != package)])


def _elsewhere(package: str, parts: Sequence[str], name: str) -> str:
    """The place of a class that a package lacks and one of its parts has, to be put behind an error.

    Other names are not looked for: Python asks for a module by its name before it imports it.
    """
    for part in parts if name[:1].isupper() else ():
        if hasattr(import_module(f"{package}.{part}"), name):
            return f"; it is {package}.{part}.{name}"
    return ""


def _places(package: str) -> dict[str, str]:
    """The module of each name that a package's stub imports."""
    file = sys.modules[package].__file__
    assert file is not None
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [line for line in stub.body if isinstance(line, ast.ImportFrom) and line.module]
    return {part.name: str(line.module) for line in imports for part in line.names if part.asname}
