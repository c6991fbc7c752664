"""A run that torchrun starts again after a failure: which folder it had before."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tasks.folder import atomic
from tasks.workers.launch import launch_id

LAUNCH = "launch.json"  # in the folder of a run that torchrun started


def note_launch(folder: Path) -> None:
    """Write down which launch made the run in a folder."""
    if (launch := launch_id()) is not None:
        atomic.write_json(folder / LAUNCH, {"launch": launch})


def restarted(root: Path, task: str) -> Path | None:
    """The folder of the run that this launch made before it was restarted; None if it is no restart."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not root.is_dir():
        return None
    launch = launch_id()
    notes = sorted(root.glob(f"{task}-*/{LAUNCH}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in notes if json.loads(path.read_text())["launch"] == launch), None)
