"""Files that answers depend on, by their content: those of the user's code, and those that values name."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from blackbox.function import BlackBoxFunction
from blackbox.named_code import spec_for
from blackbox.wrappers.wrapper import Wrapper

_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(os.path.join(_ROOT, package, "") for package in ("blackbox", "simulators", "zo", "tasks"))
_STANDARD = os.path.join(os.path.realpath(sysconfig.get_path("stdlib")), "")
_INSTALLED = {"site-packages", "dist-packages"}

MEND = (
    "Give Cached(box, path, version='1'), and another version whenever the answers change; or give the box "
    "an attribute 'identity', a text that does so."
)


def digest(data: Any) -> str:
    """SHA-256 of bytes or of a text, in hexadecimal: the fastest of the safe ones."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def owner(module: str, file: str | None) -> str:
    """Return a module's owner, by name and file: "ours", "users", or "installed", as Python's own are."""
    if file is not None:
        return _owner(file)
    top = module.partition(".")[0]
    return "installed" if top in sys.builtin_module_names or top in sys.stdlib_module_names else "users"


@functools.cache
def _owner(file: str) -> str:
    place = os.path.realpath(file)
    if place.startswith(_OURS):
        return "ours"
    is_known = place.startswith(_STANDARD) or _INSTALLED & set(Path(place).parts)
    return "installed" if is_known or _is_recorded(Path(place)) else "users"


def _is_recorded(place: Path) -> bool:
    """Say whether an installer put a file there: `pip install --target` takes a folder of any name."""
    return any(place.relative_to(folder).parts[0] in _recorded(folder) for folder in place.parents)


@functools.cache
def _recorded(folder: Path) -> frozenset[str]:
    """The names in a folder that lists of installers beside them begin with."""
    names = set[str]()
    for path in folder.glob("*.dist-info/RECORD"):
        with suppress(OSError):  # as one of another user, who lets nobody read it
            text = path.read_text(encoding="utf-8", errors="replace")
            names.update(line.partition(",")[0].partition("/")[0] for line in text.splitlines())
    return frozenset(names)


_digests: dict[str, tuple[Any, str]] = {}  # by a module's file: its spec, and the digest of its files


def source(known: Mapping[str, Any]) -> str | None:
    """The digest of a module's file and of the files of the user's modules that it imports; None without one.

    Files are read once: loaded code stays as it was then.

    Args:
        known: the module's globals; they have another spec where a module is loaded anew.
    """
    file, spec = known.get("__file__"), known.get("__spec__")
    if file is None:
        return None
    if file not in _digests or _digests[file][0] is not spec:
        files, waiting = dict[str, str](), [(getattr(spec, "name", "__main__"), file)]
        while waiting:
            name, path = waiting.pop()
            if path not in files:
                data = Path(path).read_bytes()
                files[path] = digest(data)
                parent = name if Path(path).name == "__init__.py" else name.rpartition(".")[0]
                waiting += imports(data, name, parent) if path.endswith(".py") else []
        _digests[file] = spec, digest(repr(sorted((Path(path).name, files[path]) for path in files)))
    return _digests[file][1]


@functools.lru_cache(64)
def imported(text: str | bytes) -> tuple[str, ...]:
    """The names in the imports of a module's text, of modules and of what may be one in them."""
    names = list[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            dot = "" if name.endswith(".") else "."
            names += [name, *(f"{name}{dot}{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names += [str(node.args[0].value)] if called in ("__import__", "import_module") else []
    return tuple(names)


def imports(text: str | bytes, module: str, parent: str = "") -> Iterator[tuple[str, str]]:
    """The user's modules that the text of a module names in an import, each with its file.

    Args:
        text: the text.
        module: the module's name.
        parent: the package that it lies in, to which imports are relative; "" for none.
    """
    for name in imported(text):
        try:
            full = resolve_name(name, parent)
            top = full.partition(".")[0]
            users = owner(top, getattr(sys.modules.get(top), "__file__", None)) == "users"
            file = getattr(spec_for(full, module), "origin", None) if users else None
        except Exception:  # not there, or it raises where it is imported
            continue
        if file is not None and os.path.isfile(file) and _owner(file) == "users":
            yield full, file


_MOMENT = 2 * 10**9  # ns in which two changes of a file may have one time, on the coarsest file systems
_files: dict[str, tuple[tuple[int, ...], str]] = {}  # by path: the state in which a file was read, its digest


def content(path: str | os.PathLike[str]) -> str:
    """The digest of a file, read again only where size, time or place have changed; "" of all else."""
    try:
        if not os.path.isfile(path):
            return ""
        status = os.stat(path)
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        key, now = os.path.abspath(path), time.time_ns()
        if key in _files and _files[key][0] == state:
            return _files[key][1]
        with open(path, "rb") as file:
            words = f" sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
        if now - max(status.st_mtime_ns, status.st_ctime_ns) > _MOMENT:  # or a write may leave the same state
            _files[key] = state, words
        return words
    except OSError:
        return ""


def files_of(box: BlackBoxFunction) -> list[Path]:
    """The files and folders that a box names, inside its wrappers: those in its attribute `files`, if any.

    Of a box without it, each `Path` to a file among its attributes, in lists, tuples and dicts too. What a
    wrapper names, such as the answers of `Cached`, changes as it runs and is not among them.
    """
    while isinstance(box, Wrapper):
        box = box.box
    named = getattr(box, "files", None)
    inside = _paths(named) if isinstance(named, list | tuple) else filter(Path.is_file, _paths(vars(box)))
    return list(dict.fromkeys(path.absolute() for path in inside))


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _paths(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _paths(inside)
