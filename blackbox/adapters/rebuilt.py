"""A box made from a file, made again in another process: from the same file, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blackbox.errors import ConfigurationError


def rebuilt(kind: type[Any], path: Path, settings: dict[str, Any], checksum: str) -> Any:
    """The box of a class, a file and settings, as its pickle makes it.

    Args:
        kind: the class, which takes the path and the settings, and has an attribute `checksum`.
        path: the file.
        settings: keyword arguments.
        checksum: the checksum of the file from which the pickled box was made.

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
