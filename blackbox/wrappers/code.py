"""What code does, by its instructions: the same wherever its file lies, and whatever its comments say."""

from __future__ import annotations

import dis
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_INSTALLED = {"site-packages", "dist-packages"}
_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(_ROOT / package for package in ("blackbox", "simulators", "zo", "tasks"))
_STORES = {"STORE_ATTR"}
_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME"}


@dataclass(frozen=True)
class Instructions:
    """What one piece of code and those inside it consist of.

    Attributes:
        digest: of the instructions, without lines, comments and docstrings.
        names: of the globals that they read.
        attributes: all names that they use, those of attributes among them.
        stores: the attributes that they write.
        imports: the modules that they import, as (level, name), with what is taken from them.
    """

    digest: str
    names: frozenset[str]
    attributes: frozenset[str]
    stores: frozenset[str]
    imports: frozenset[tuple[int, str]]


_known: dict[
    int, tuple[CodeType, Instructions]
] = {}  # by the code's id, which stays its own while it is here


def instructions(code: CodeType) -> Instructions:
    """What a piece of code consists of; read once."""
    if id(code) not in _known:
        _known[id(code)] = code, _read(code)
    return _known[id(code)][1]


def _read(code: CodeType) -> Instructions:
    lines = [
        f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} {code.co_flags} "
        f"{code.co_varnames} {code.co_exceptiontable!r}"
    ]
    names, stores, imports = set[str](), set[str](), set[tuple[int, str]]()
    inside: list[Instructions] = []
    constants: list[Any] = [None, None]  # the last two, which are an import's level and what it takes
    for one in dis.get_instructions(code):
        value: Any = one.argval
        lines.append(f"{one.opname} {_constant(value)}")
        if inspect.iscode(one.argval):
            inside.append(instructions(one.argval))
        if one.opname in _GLOBALS:
            names.add(value)
        elif one.opname in _STORES:
            stores.add(value)
        elif one.opname == "IMPORT_NAME":
            level, taken = constants[-2:]
            level = level if isinstance(level, int) else 0
            taken = taken if isinstance(taken, tuple) else ()
            dotted = f"{value}." if value else ""
            imports |= {(level, value), *((level, f"{dotted}{name}") for name in taken)}
        if "CONST" in one.opname or one.opname == "LOAD_SMALL_INT":
            constants.append(value)
    for inner in inside:
        names |= inner.names
        stores |= inner.stores
        imports |= inner.imports
    attributes = {*code.co_names, *(name for inner in inside for name in inner.attributes)}
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=20).hexdigest()
    return Instructions(
        digest, frozenset(names), frozenset(attributes), frozenset(stores), frozenset(imports)
    )


def _constant(value: object) -> str:
    if isinstance(value, CodeType):
        return f"code {instructions(value).digest}"
    if isinstance(value, frozenset):  # whose order is that of the process's hashes
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    return f"{type(value).__name__} {value!r}"


def stores(cls: type) -> set[str]:
    """The attributes that the methods of a class and of its parents write."""
    functions = [value for parent in cls.__mro__ for value in vars(parent).values()]
    return {
        name for f in functions if isinstance(f, FunctionType) for name in instructions(f.__code__).stores
    }


def file_of(module: str) -> str | None:
    """The file of a module that is imported."""
    return getattr(sys.modules.get(module), "__file__", None)


def is_users(module: str, file: str | None, package: str) -> bool:
    """Whether code is the user's own, and not Python's, ours or an installed package's, known by their names.

    Args:
        module: the module's name.
        file: where it lies; None for none, as in an interactive session.
        package: what counts as the user's own although it is installed.
    """
    if file is None:
        return module.partition(".")[0] not in sys.builtin_module_names
    if file.startswith("<frozen"):
        return False
    path = Path(file).resolve()
    if any(path.is_relative_to(ours) for ours in _OURS):
        return False
    if package and module.partition(".")[0] == package:
        return True
    return not (_INSTALLED & set(path.parts) or path.is_relative_to(_STANDARD))


def imported_files(code: Instructions, package: str | None) -> Iterator[Path]:
    """The files of modules that code imports when it runs, in the order of their names."""
    for level, name in sorted(code.imports):
        try:
            full = importlib.util.resolve_name("." * level + name, package)
            spec = importlib.util.find_spec(full)
        except (ImportError, ValueError, AttributeError):  # not there, or a name of the module before
            continue
        if spec is not None and spec.origin is not None and is_users(full, spec.origin, ""):
            if Path(spec.origin).is_file():
                yield Path(spec.origin)


def name_of(value: type | FunctionType | BuiltinFunctionType) -> str:
    """The module and name of a class or function."""
    module = value.__module__
    if module in ("__main__", "__mp_main__"):  # the same for all scripts, which may have classes of one name
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").name
    return f"{module}.{value.__qualname__}"
