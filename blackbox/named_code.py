"""Code that the user names, imported from its own folder, which is never on Python's path.

A folder may have come from elsewhere. On `sys.path`, installed packages would find in it what is optional to
them, and `importlib.metadata` entry points. So a finder at the end of `sys.meta_path` looks into the folder
for the module that is named, and for what modules from there import themselves, at whatever time.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module, invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

VARIABLE = "BLACKBOX_NAMED_CODE"  # by which processes that are started from here find the same modules
_IMPORTING = ("importlib", "_frozen_importlib", "_frozen_importlib_external")

# By a module's top-level name the file, where one was named, or the folder, whose path ends in a separator.
_places: dict[str, str] = json.loads(os.environ.get(VARIABLE, "{}"))


class _Finder:
    """Finds modules beside the one that imports them, where that one is named code."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of a module in the folder of its importer; None for any other."""
        return beside(name, _importer()) if path is None else None


def from_file(path: Path) -> ModuleType:
    """The module in a file, by its plain name where no installed one has it; its code is executed."""
    name = path.stem
    spec_there = sys.modules[name].__spec__ if name in sys.modules else _installed(name)
    if not name.isidentifier() or not (spec_there is None or _is_file(spec_there.origin, path)):
        name = f"blackbox_file_{name.replace('.', '_')}"
        spec_there = getattr(sys.modules.get(name), "__spec__", None)
        if spec_there is not None and not _is_file(spec_there.origin, path):
            del sys.modules[name]
    return _imported(name, name, str(path))


def from_name(name: str, folder: Path | None) -> ModuleType:
    """A module that is installed, or else lies in a folder, if one is given; its code is executed.

    Raises:
        ImportError: There is none, or it raises this itself.
        ValueError: It is no module's name.
    """
    top = name.partition(".")[0]
    if top in sys.modules or _installed(top) is not None:
        return import_module(name)
    if folder is None:
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)
    return _imported(name, top, os.path.join(folder, ""))


def spec_for(name: str, importer: str) -> ModuleSpec | None:
    """Return the spec of an import in a module, as `importlib.util.find_spec` gives it to that module."""
    top = name.partition(".")[0]
    if top not in sys.modules and _installed(top) is None:
        beside(top, importer.partition(".")[0])
    return find_spec(name)


def beside(name: str, importer: str) -> ModuleSpec | None:
    """The spec of a module in the folder of its importer, by the top-level names of both.

    Where the importer is none of the user's, as in another process that reads a pickle, one that was found is
    found again.
    """
    place = _places.get(importer) or _places.get(name, "")
    if importer not in _places and place.endswith(".py"):
        return spec_from_file_location(name, place)
    folder = _folder(place)
    spec = PathFinder.find_spec(name, [folder]) if folder else None
    if spec is not None:
        _note(name, folder)
    return spec


def hint(error: BaseException | None) -> str:
    """Name the place of a module that other code, or another process, did not find; "" if not by named code.

    What an installed package imports for the user's code, such as `joblib.load`, is imported by that package.
    """
    while error is not None:
        for name in re.findall(r"No module named '(\w+)'", str(error)):
            for folder in map(Path, map(_folder, _places.values())):
                if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
                    return (
                        f" ({name} lies in {folder}, and only code of that folder looks there: import it at "
                        f"the top of your file; for other processes too, set PYTHONPATH={folder})"
                    )
        error = error.__cause__ or error.__context__
    return ""


def _imported(name: str, top: str, place: str) -> ModuleType:
    """Import a module of a named place; where that fails nothing of it is kept."""
    _note(top, place)
    invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        return import_module(name)
    finally:
        if top not in sys.modules:
            _places.pop(top, None)


def _note(name: str, place: str) -> None:
    _places[name] = place
    os.environ[VARIABLE] = json.dumps(_places)
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)


def _folder(place: str) -> str:
    return os.path.join(os.path.dirname(place), "")


def _installed(top: str) -> ModuleSpec | None:
    """The spec of a top-level module wherever Python finds it without a look beside named code."""
    previous_place = _places.pop(top, None)
    try:
        return find_spec(top)
    finally:
        if previous_place is not None:
            _places[top] = previous_place


def _is_file(origin: str | None, path: Path) -> bool:
    return origin is not None and os.path.realpath(origin) == os.path.realpath(path)


def _importer() -> str:
    """The top-level name of the module whose code imports something at this moment."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in _IMPORTING:
            return name
        frame = frame.f_back
    return ""


if _places:
    sys.meta_path.append(_Finder)
