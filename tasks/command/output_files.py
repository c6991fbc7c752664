"""Files that a command writes at its end: what would keep it from that is said at its start."""

from __future__ import annotations

from pathlib import Path

from tasks.errors import ConfigurationError


def refuse_unwritable(option: str, path: Path, ending: str | None = None) -> None:
    """Refuse a file that could not be written; or which is there, and is none that the command writes.

    Args:
        option: The option, for messages.
        path: The file.
        ending: How names of such files end; None where the command knows its files by what is in them.

    Raises:
        ConfigurationError: It is a folder, or in none, or a file of another ending is there.
    """
    if path.is_dir():
        raise ConfigurationError(f"{option}: expected a file, got the folder {path}. Give a file in it.")
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"{option}: expected a file in a folder that is there, got {path}. Make {path.parent} first."
        )
    if ending is not None and path.is_file() and path.suffix != ending:
        raise ConfigurationError(
            f"{option}: expected a new file or one that ends in {ending}, got {path}, which would be "
            "overwritten. Give another name."
        )
