"""Where the run is that processes work on: told to the launcher, for when the first of them cannot say it."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "run"  # beside the store, in the launcher's folder


def note(run: Path) -> None:
    """In the first process: write down the run's folder for the launcher, if there is one."""
    if "BLACKBOX_STORE" in os.environ:
        Path(os.environ["BLACKBOX_STORE"]).with_name(NAME).write_text(str(run), encoding="utf-8")


def read(folder: Path) -> str | None:
    """In the launcher: what was noted; None if nothing was."""
    path = folder / NAME
    return path.read_text(encoding="utf-8") if path.is_file() else None
