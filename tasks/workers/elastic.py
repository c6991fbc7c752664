"""Which run torchrun's restart goes on with: the one that the same launch made before."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from tasks.runs import atomic

NAME = "launch.json"  # in the folder of a run that torchrun started
STOPPED = 0  # status of a run that was asked to stop: torchrun would start again what ends otherwise


def launch_id() -> str | None:
    """What is the same for all restarts of one torchrun, and for no other; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    job = os.environ["TORCHELASTIC_RUN_ID"]
    # Without --rdzv-id all jobs are called "none": then the agent tells them apart, which starts us again.
    return job if job != "none" else f"none {socket.gethostname()} {os.getppid()}"


def note(folder: Path) -> None:
    """Write down which launch made the run in a folder."""
    if (launch := launch_id()) is not None:
        atomic.write_json(folder / NAME, {"launch": launch})


def restarted(root: Path, task: str) -> Path | None:
    """The folder of the run that this launch made before it was restarted; None if it is no restart."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not root.is_dir():
        return None
    launch = launch_id()
    notes = sorted(root.glob(f"{task}-*/{NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in notes if json.loads(path.read_text())["launch"] == launch), None)
