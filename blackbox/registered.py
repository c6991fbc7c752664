"""Registration: a table of places for shipped parts; installed packages add theirs by entry points.

    [project.entry-points."zo.tangents"]
    my-model = "my_package.model:CANDIDATE"

A place is `module:Name`. Its module is imported when somebody asks for it, and where a table of this project
names a shelf that was taken out, there is nothing at that place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from functools import lru_cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from blackbox.errors import ConfigurationError


def added(group: str, shipped: Collection[str]) -> dict[str, dict[str, str]]:
    """The names that installed packages add to those that ship, which nobody takes over.

    A package in the folder that the user is in is not installed: its files may have come from elsewhere.

    Args:
        group: The entry points' group, such as "blackbox.functions".
        shipped: The names of this project.

    Returns:
        For each name every `module:Name` that some package has for it, and a line that says which.
    """
    places: dict[str, dict[str, str]] = {}
    for name, place, package in _installed(group, tuple(map(_state, (os.curdir, *sys.path)))):
        if name not in shipped:
            places.setdefault(name, {})[place] = f"{place}, from {package}"
    return places


def registered(group: str, shipped: Mapping[str, str], left_out: Collection[str] = ()) -> dict[str, Any]:
    """Import the shipped parts that are there, and then the parts that installed packages have added.

    Args:
        group: The entry points' group.
        shipped: The place of each name of this project.
        left_out: Names that are not looked at.

    Raises:
        ConfigurationError: two packages want one name, or what one has named is not there.
    """
    values = {name: _on_the_shelf(place) for name, place in shipped.items() if name not in left_out}
    values = {name: value for name, value in values.items() if value is not None}
    for name, places in added(group, shipped).items():
        if name not in left_out:
            values[name] = _installed_value(group, name, places)
    return values


def is_there(shelf: str) -> bool:
    """Say whether the module of a shelf is there, by its name: it may have been taken out."""
    return find_spec(shelf) is not None


def _on_the_shelf(place: str) -> Any | None:
    """Return the object at a place of this project; None where its shelf was taken out."""
    module, _, name = place.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the shelf is there, and misses something itself
        return None


def _installed_value(group: str, name: str, places: Mapping[str, str]) -> Any:
    """Return the object that a package has added under a name that no other wants."""
    who = "; ".join(places.values())
    if len(places) > 1:
        raise ConfigurationError(
            f"{name!r} of {group}: expected one package with this name, got {who}. Uninstall all but one."
        )
    module, _, attribute = next(iter(places)).partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{name!r} of {group}: expected something at {who}, got {type(error).__name__}: {error}. Mend "
            "that package, or uninstall it."
        ) from error


@lru_cache(maxsize=8)
def _installed(group: str, _: tuple[object, ...]) -> list[tuple[str, str, str]]:
    """Name, place and package of each entry point: read once, and again when a folder of the path changed."""
    current_folder = _current_folder()
    return sorted(
        (
            entry.name,
            entry.value,
            f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package",
        )
        for entry in metadata.entry_points(group=group)
        if entry.dist is None or os.path.realpath(str(entry.dist.locate_file(""))) != current_folder
    )


def _current_folder() -> str | None:
    """The folder that the user is in; None where it is gone, or PYTHONPATH says that it is meant."""
    try:
        here = os.path.realpath(os.curdir)
    except OSError:
        return None
    python_paths = filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return None if here in map(os.path.realpath, python_paths) else here


def _state(folder: str) -> object:
    try:
        status = os.stat(folder or ".")
    except OSError:
        return folder
    return folder, status.st_ino, status.st_mtime_ns
