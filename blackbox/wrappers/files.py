"""The files that a black box's answers depend on: programs, and what else it names by a `Path`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from blackbox.function import BlackBoxFunction
from blackbox.wrappers.wrapper import Wrapper


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
