"""A box made from a file, made again in another process: from the same file, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

from blackbox.errors import ConfigurationError


class FromFile(Protocol):
    """A box that knows the checksum of the file that it was made from."""

    checksum: str


Box = TypeVar("Box", bound=FromFile)


def rebuilt(kind: type[Box], path: Path, settings: dict[str, Any], checksum: str) -> Box:
    """The box of a class, a file and settings, as a pickle makes it.

    Raises:
        ConfigurationError: the file is no longer the one with this checksum.
    """
    box = kind(path, **settings)
    if box.checksum != checksum:
        raise ConfigurationError(
            f"{box!r}: expected the file that the box was made from, with checksum {checksum[:12]}. It has "
            "changed since: make the box anew."
        )
    return box
