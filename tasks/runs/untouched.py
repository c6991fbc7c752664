"""A run that was refused before it began leaves no folder behind."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.runs import lock
from tasks.runs.folder import CONFIG

_AT_FIRST = {CONFIG, "checkpoints", lock.NAME}  # what a run has before anything is done


def discard(folder: Path) -> bool:
    """Delete a run's folder if nothing was done in it: no metrics, checkpoints, or other files.

    Args:
        folder: made by `Run.create` in this very process, with no one else at work on it.

    Returns:
        Whether it is gone; not where the system refuses, which must not hide why the run was.
    """
    try:
        if {path.name for path in folder.iterdir()} - _AT_FIRST or any((folder / "checkpoints").iterdir()):
            return False
        shutil.rmtree(folder)
    except OSError:
        return False
    return True
