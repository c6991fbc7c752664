"""What code does, by its instructions: the same wherever its file lies, and whatever its comments say."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from blackbox.named_code import spec_for

_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_INSTALLED = {"site-packages", "dist-packages"}
_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(_ROOT / package for package in ("blackbox", "simulators", "zo", "tasks"))
_STORES = {"STORE_ATTR"}
_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME"}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
_BY_TEXT = {"eval", "exec", "globals", "__import__", "import_module"}  # and sys.modules
_MODULES = "sys.modules"
_BY_KEY = {"__dict__", "__getattribute__", "__getattr__"}  # attributes by which any other is read
_CALLS = {"PRECALL", "CALL", "PUSH_NULL", "NOP"}


@dataclass(frozen=True)
class Instructions:
    """What one piece of code and those inside it consist of.

    Attributes:
        digest: of the instructions, without lines, comments and docstrings.
        names: of the globals that they read.
        attributes: all names that they use, those of attributes among them.
        stores: the attributes that they write.
        imports: the modules that they import, as (level, name), with what is taken from them.
        bare: names of variables and attributes of which they do more than read or write an attribute: what a
            module of that name is used for is not in the code, as in `getattr(module, name)`.
        bare_imports: whether a module that they import is used so.
        opaque: what runs, reads or imports by a text that is not in the code (`eval(text)`).
    """

    digest: str
    names: frozenset[str]
    attributes: frozenset[str]
    stores: frozenset[str]
    imports: frozenset[tuple[int, str]]
    bare: frozenset[str]
    bare_imports: bool
    opaque: frozenset[str]


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
    names, attributes, stores = set[str](), set(code.co_names), set[str]()
    imports, opaque = set[tuple[int, str]](), set[str]()
    bare, bound = set[str](), set[str]()
    inside: list[Instructions] = []
    constants: list[Any] = [None, None]  # the last two, which are an import's level and what it takes
    every = list(dis.get_instructions(code))
    for place, one in enumerate(every):
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
        if one.opname.startswith("STORE") and every[place - 1].opname in ("IMPORT_NAME", "IMPORT_FROM"):
            bound.add(str(value))
        bare |= _bare(every, place)
        used = _by_text(every, place)
        text = _text_after(every, place) if used else ""
        if used and text is None:
            opaque.add(used)
        elif used == "globals" and text:
            names.add(text)
        elif used in ("eval", "exec") and text:
            try:
                inside.append(instructions(compile(text, "<text>", used)))
            except (SyntaxError, ValueError):
                pass  # it raises where it runs
        elif used and text:
            imports.add((0, text))
            bound.add(text)
            bare.add(text)
    for inner in inside:
        names |= inner.names
        attributes |= inner.attributes
        stores |= inner.stores
        imports |= inner.imports
        opaque |= inner.opaque
        bare |= inner.bare
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=20).hexdigest()
    return Instructions(
        digest,
        frozenset(names),
        frozenset(attributes),
        frozenset(stores),
        frozenset(imports),
        frozenset(bare),
        not bound.isdisjoint(bare) or any(inner.bare_imports for inner in inside),
        frozenset(opaque),
    )


def _bare(every: list[dis.Instruction], place: int) -> set[str]:
    """The names that this instruction reads, but for one of which an attribute is read or written next."""
    one = every[place]
    if not one.opname.startswith("LOAD_") or "CONST" in one.opname:
        return set()
    names = [name for name in (one.argval if isinstance(one.argval, tuple) else (one.argval,)) if name]
    after = every[place + 1] if place + 1 < len(every) else None
    if after is not None and after.opname in _ATTRIBUTES | {"STORE_ATTR"} and after.argval not in _BY_KEY:
        names = names[:-1]
    return {name for name in names if isinstance(name, str)}


def _by_text(every: list[dis.Instruction], place: int) -> str:
    """What this instruction names that goes by a text; "" if it does not."""
    one = every[place]
    before = every[place - 1].argval if place else None
    if one.opname in _GLOBALS | _ATTRIBUTES and one.argval == "modules" and before == "sys":
        return _MODULES
    if one.opname in _GLOBALS and one.argval in _BY_TEXT:
        return one.argval
    is_of = {"importlib": {"import_module", "__import__"}, "builtins": _BY_TEXT}
    if one.opname in _ATTRIBUTES and one.argval in is_of.get(str(before), ()):
        return one.argval
    return ""


def _text_after(every: list[dis.Instruction], place: int) -> str | None:
    """The one text in the code by which it goes; "" where it is only asked whether something is there.

    Returns:
        None for any other: one that is put together, in a variable, or with a namespace beside it.
    """
    rest = [one for one in every[place + 1 :] if one.opname not in _CALLS]
    if rest and rest[0].opname in _ATTRIBUTES and rest[0].argval == "get":
        rest = rest[1:]
    if rest and rest[0].opname == "CONTAINS_OP":
        return ""
    if not rest or rest[0].opname != "LOAD_CONST" or not isinstance(rest[0].argval, str):
        return None
    after = next(one for one in every[every.index(rest[0], place) + 1 :])
    ends = after.opname in _CALLS | {"BINARY_SUBSCR"} or (
        after.opname == "BINARY_OP" and "[" in after.argrepr
    )
    return rest[0].argval if ends else None


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
    if _is_ours(file):
        return False
    if package and module.partition(".")[0] == package:
        return True
    return not _is_installed(file)


@functools.cache
def _is_ours(file: str) -> bool:
    path = Path(file).resolve()
    return any(path.is_relative_to(ours) for ours in _OURS)


@functools.cache
def _is_installed(file: str) -> bool:
    path = Path(file).resolve()
    return bool(_INSTALLED & set(path.parts)) or path.is_relative_to(_STANDARD)


def imported(code: Instructions, module: Mapping[str, Any], package: str) -> Iterator[tuple[str, Path]]:
    """The user's modules that code imports when it runs, and their files, in the order of their names.

    Args:
        code: the code.
        module: the globals of the code's module: its name and package, to which imports are relative.
        package: what counts as the user's own although it is installed.
    """
    for level, name in sorted(code.imports):
        try:
            full = importlib.util.resolve_name("." * level + name, module.get("__package__"))
            top = full.partition(".")[0]
            if top in sys.modules and not is_users(top, file_of(top), package):
                continue
            spec = spec_for(full, str(module.get("__name__")))
        except (ImportError, ValueError, AttributeError):  # not there, or a name of the module before
            continue
        if spec is not None and spec.origin is not None and is_users(full, spec.origin, package):
            if Path(spec.origin).is_file():
                yield full, Path(spec.origin)


_broken: set[str] = set()  # modules whose import has raised


def load(module: str) -> None:
    """Import a module, as the code that names it will do; nothing comes of it where that raises."""
    if module not in sys.modules and module not in _broken:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit):
            _broken.add(module)


def name_of(value: type | FunctionType | BuiltinFunctionType) -> str:
    """The module and name of a class or function."""
    module = value.__module__
    if module in ("__main__", "__mp_main__"):  # the same for all scripts, which may have classes of one name
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").name
    return f"{module}.{value.__qualname__}"
