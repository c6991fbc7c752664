"""A digest of what a problem's class does: its methods, and what these read beside the object.

A class of a notebook has no file whose checksum would say that it is another one by now.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any

from blackbox import BlackBoxFunction
from tasks.problem.made_once import MadeOnce

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LONG = 1000  # entries of what is taken for data


def digest(kind: type) -> dict[str, str]:
    """The first digits of a SHA-256 by the name of a class, as a run's versions have those of files.

    In it are the bytecode of its module's functions and classes, as far as it uses them, and numbers, texts
    and lists of these that they have as attributes, in closures or as globals. Arrays and data are not.
    """
    try:
        text = _text(kind, kind.__module__, set())
    except RecursionError:  # a list that holds itself
        return {}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"  # whose bytecode it is
    return {f"class {kind.__name__} (Python {python})": hashlib.sha256(text.encode()).hexdigest()[:12]}


def _text(value: Any, module: str, seen: set[int]) -> str:
    """A value as text that is the same in another process."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple | list | set | frozenset | dict) and len(value) > _LONG:
        return type(value).__qualname__
    if isinstance(value, tuple | list):
        return f"({', '.join(_text(part, module, seen) for part in value)})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_text(part, module, seen) for part in value))}}}"
    if isinstance(value, dict):
        parts = [(name, value[name]) for name in sorted(value, key=repr)]
        return _text(parts, module, seen)
    if isinstance(value, CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_text(value.co_consts, module, seen)}"
    if isinstance(value, type | FunctionType):
        if id(value) in seen or value.__module__ != module:
            return value.__qualname__
        seen.add(id(value))
        if isinstance(value, FunctionType):
            return _text(_parts(value), module, seen)
        return _text((value.__name__, value.__bases__, _attributes(value)), module, seen)
    if isinstance(value, property):
        return _text((value.fget, value.fset), module, seen)
    for wrapper, name in _WRAPPERS.items():
        if isinstance(value, wrapper):
            return _text(getattr(value, name), module, seen)
    return type(value).__qualname__


_WRAPPERS = {MadeOnce: "method", cached_property: "func", staticmethod: "__func__", classmethod: "__func__"}
_CODE = (FunctionType, type, property, *_WRAPPERS)


def _attributes(kind: type) -> dict[str, Any]:
    """Its own, without those that Python keeps there; it adds some when an object is copied.

    Values in classes of boxes are left out: they may be counts, and a run asks its boxes once more.
    """
    values = not issubclass(kind, BlackBoxFunction)
    return {
        name: value
        for name, value in vars(kind).items()
        if isinstance(value, _CODE) or (values and not name.startswith("__"))
    }


def _parts(function: FunctionType) -> tuple[Any, ...]:
    """What a function does: its code, its defaults, and the variables outside that it reads."""
    known, cells = function.__globals__, list[Any]()
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            cells.append(cell.cell_contents)
    read = {name: known[name] for name in _names(function.__code__) if name in known}
    return (function.__code__, function.__defaults__, function.__kwdefaults__, cells, read)


def _names(code: CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)
