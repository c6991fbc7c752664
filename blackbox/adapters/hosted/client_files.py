"""`write_client`: writes the files for a program that calls a network into the program's folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from blackbox.errors import ConfigurationError

CLIENT = ("bb_host.h", "bb_host.c", "bb_host.hpp", "bb_host.f90", "bb_host.py")
NEXT = """Wrote {folder}: {names}. Add to your program:
  C        #include "bb_host.h", compile bb_host.c with it
  C++      #include "bb_host.hpp", compile bb_host.c with it
  Fortran  use bb_host, compile bb_host.c and bb_host.f90 with it
  Python   import bb_host
and where the closure is computed: if nobody trains, bb_exchange("closure", ...) returns 0 (.false., None)."""


def write_client(folder: Path, names: Sequence[str] = CLIENT) -> str:
    """Write bb_host.

    Args:
        folder: The folder; made if it is missing.
        names: The names of the files.

    Returns:
        A sentence that says which files were written, and how to use them.

    Raises:
        ConfigurationError: A file of another content is there; nothing is written.
    """
    source = files("blackbox.adapters.hosted") / "client"
    texts = {name: (source / name).read_text(encoding="utf-8") for name in names}
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder}: expected a folder, got a file. Give another.")
    for name, text in texts.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise ConfigurationError(
                f"{path}: expected no file, or the one of this version, got another. Remove it, or take "
                "another folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return NEXT.format(folder=folder, names=", ".join(names))
