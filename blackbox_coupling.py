"""The guard against files with the name of one of our packages, and behind it the console script `blackbox`.

`tasks` and `zo` are names that a user's files may have too, and Python takes what its path has first: the
folder of a script, or one of `PYTHONPATH`. This module has a name that nobody else has, and the packages are
beside it. It imports none of them: each of them imports it.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("blackbox", "simulators", "tasks", "zo")
HERE = Path(__file__).resolve().parent
COMMAND = "tasks.command.cli"  # whose `main` is the command line; by name, as an entry point has it


def main() -> int:
    """The exit status of the command line; see `tasks.command.cli.main`."""
    leave_the_current_folder()
    if any(map(in_the_way, PACKAGES)):
        sys.path.insert(0, str(HERE))
    return import_module(COMMAND).main()


def leave_the_current_folder() -> None:
    """Take off Python's path what is another folder in each current folder, whose files may be anyone's.

    These are the first entry, where `python -m` or `python -c` began, and all that are relative: Python makes
    those of `PYTHONPATH` absolute, and an editable install has one that stands for no folder unless one is
    here. What is absolute is meant, and the folder of this project's packages stays.
    """
    parts = list(filter(None, [os.environ.get("PYTHONPATH")]))
    parts = parts[0].split(os.pathsep) if parts else []
    with suppress(OSError):  # the current folder is gone
        here, kept = os.getcwd(), {str(HERE), *filter(os.path.isabs, parts)}
        left = {os.path.abspath(part) for part in parts} - kept
        if not sys.flags.safe_path and sys.path[0] == here != str(HERE):
            del sys.path[0]
        left |= {part for part in sys.path if not os.path.isabs(part) and os.path.lexists(part or here)}
        sys.path[:] = [part for part in sys.path if part not in left]


def in_the_way(name: str) -> str | None:
    """The file or folder that Python takes for a package of this project; None if it takes the package."""
    module = sys.modules.get(name)
    found = PathFinder.find_spec(name, sys.path) if module is None else module.__spec__
    if found is None:  # installed in a way that the path does not show
        return None
    if found.origin is None:  # a folder without an __init__.py
        return next(iter(found.submodule_search_locations or ()), None)
    return None if Path(found.origin).resolve().parent == HERE / name else found.origin


def name_what_is_in_the_way() -> None:
    """Say which file is in the way, where a script that is at work asks it for what a package of ours has.

    Each package imports this module, which calls this. Where nothing is in the way, which is nearly always,
    it looks no further. A user's own `tasks.py` may well be meant: nothing is said of it where scripts ask it
    for what it has, or for what the package has not either.

    Raises:
        ImportError: Something is in the way of `blackbox`, and a package that needs it is imported.

    Warns:
        RuntimeWarning: Naming the file, once for each package.
    """
    taken = {name: place for name in PACKAGES if (place := in_the_way(name))}
    files = files_at_work() if taken else []
    if "blackbox" in taken and any(HERE / name in path.parents for path in files for name in PACKAGES[1:]):
        raise ImportError(sentence("blackbox", taken["blackbox"]), name="blackbox")
    asked = {asked for path in files if HERE not in path.parents for asked in asked_of(path)}
    for name, place in taken.items():
        if any(name == of and wanted in names_of(name) and not has(place, wanted) for of, wanted in asked):
            warnings.warn(sentence(name, place), RuntimeWarning, stacklevel=4)  # at the import of a package


def sentence(name: str, place: str) -> str:
    """What is said of a file in the way of a package."""
    return (
        f"{name}: expected the package of blackbox-coupling, got {place}, which is in front of it on "
        "Python's path. Rename that one, or move your script to a folder without it."
    )


def files_at_work() -> list[Path]:
    """The files whose code is running, innermost first: those that import one another, and the script."""
    files, frame = dict[Path, None](), sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.suffix == ".py" and path.is_file():
            files[path.resolve()] = None
        frame = frame.f_back
    return list(files)


def asked_of(path: Path) -> Iterator[tuple[str, str]]:
    """What a file asks of modules with the names of our packages: the name, and what is asked of it."""
    tree, called = _parsed(path), dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for module in node.names:
                name, _, inner = module.name.partition(".")
                if module.asname is None or not inner:
                    called[module.asname or name] = name
                if inner:
                    yield name, inner.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            name, _, inner = node.module.partition(".")
            yield from ((name, inner.partition(".")[0] or each.name) for each in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called:
            yield called[node.value.id], node.attr


def _parsed(path: Path) -> ast.AST:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # which Python will say
        return ast.Module([], [])


def has(place: str, wanted: str) -> bool:
    """Whether a user's file or folder has a name; read without importing it."""
    path = Path(place)
    folder = path.parent if path.name == "__init__.py" else path
    if (folder / wanted).is_dir() or (folder / f"{wanted}.py").is_file():
        return True
    if not path.is_file():
        return False
    names = {"__getattr__", "*"}  # by which it may have any
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.alias) and (node.asname or node.name) in {wanted, *names}:
            return True
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in {wanted, *names}:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == wanted:
            return True
    return False


def names_of(package: str) -> set[str]:
    """What can be asked of a package of this project, read without importing it: names and modules."""
    names, face = {path.stem for path in (HERE / package).iterdir()}, HERE / package / "__init__.py"
    stub = face.with_suffix(".pyi")  # where there is one, it has the names: see `blackbox.faces`
    for node in ast.parse((stub if stub.is_file() else face).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names.update(ast.literal_eval(node.value))
        elif stub.is_file() and isinstance(node, ast.ImportFrom):
            names.update(part.asname for part in node.names if part.asname)
    return names


name_what_is_in_the_way()
if "BLACKBOX_NAMED_CODE" in os.environ:  # in a process that one with code of the user's has started
    import_module("blackbox.named_code")
if __name__ == "__main__":
    sys.exit(main())
