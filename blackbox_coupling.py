"""The console script `blackbox`, and what is said where a file has the name of one of our packages.

`tasks` and `zo` are names that a user's files may have too, and Python takes what its path has first: the
folder of a script, or one of `PYTHONPATH`. This module has a name that nobody else has, and the packages are
beside it.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType, TracebackType

PACKAGES = ("blackbox", "simulators", "tasks", "zo")
HERE = Path(__file__).resolve().parent


def main() -> int:
    """The exit status of the command line; see `tasks.cli.main`."""
    if any(map(in_the_way, PACKAGES)):
        sys.path.insert(0, str(HERE))
        # of the processes that are started from here
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["PYTHONSAFEPATH"] = "1"  # nor does the current folder come before it there
    from tasks.cli import main

    return main()


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
    """Have errors of a script that are due to a file in the way of a package say so, and name the file.

    Each package imports this module, which calls this. Where nothing is in the way, which is nearly always,
    it changes nothing. A user's own `tasks.py` may well be meant: nothing is said until an error ends a
    script that asks it for what the package has.
    """
    if not any(map(in_the_way, PACKAGES)) or getattr(sys.excepthook, "names_what_is_in_the_way", False):
        return
    before = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if said := explanation(error):
            error.add_note(said)
        before(kind, error, trace)

    excepthook.names_what_is_in_the_way = True  # type: ignore[attr-defined]
    sys.excepthook = excepthook


def explanation(error: BaseException) -> str | None:
    """Which file is in the way, if that is what an error is about: it was asked for what a package has."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name, wanted = error.obj.__name__, error.name
    elif isinstance(error, ImportError) and error.name is not None:
        name, _, wanted = error.name.partition(".")
        asked = re.match("cannot import name '([^']+)'", error.msg)
        wanted = asked[1] if asked else wanted.partition(".")[0]
    else:
        return None
    place = in_the_way(name) if name in PACKAGES else None
    if place is None or wanted not in names_of(name):
        return None
    return (
        f"{name}: expected the package of blackbox-coupling, got {place}, which is in front of it on "
        "Python's path. Rename that one, or move your script to a folder without it."
    )


def names_of(package: str) -> set[str]:
    """What can be asked of a package of this project, read without importing it: names and modules."""
    names = {path.stem for path in (HERE / package).iterdir()}
    for node in ast.parse((HERE / package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names.update(ast.literal_eval(node.value))
    return names


name_what_is_in_the_way()
if __name__ == "__main__":
    sys.exit(main())
