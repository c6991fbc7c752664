"""The folder of a run as a place: made, held by one process at a time, deleted where nothing was done."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import RunFolderError, RunLockedError
from tasks.folder import warning_notes
from tasks.folder.terms import BEGUN, CONFIG

CHECKPOINTS, LOCK = "checkpoints", ".lock"
SAMPLING = "sampling.json"  # of `blackbox sample`
DATA = "data.json"  # digests of a run's data
UNTOUCHED = {CONFIG, BEGUN, CHECKPOINTS, LOCK, DATA, warning_notes.NAME}  # of a run in which nothing was done
COUNTED = {"calls", "calls.json", "first_rows.pt"}  # of one that has timed its first batch, and no more


def new(root: Path, name: str) -> Path:
    """Make `root/name`, or `root/name-2` and so on where two runs start in the same second."""
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            (path / CHECKPOINTS).mkdir()
            return path


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock file stays behind, empty of meaning once its process is gone.

    Raises:
        RunLockedError: another process holds it; the message gives its id and machine.
        RunFolderError: the file system locks no files.
    """
    # "a+": opening must not wipe the other process's id
    with open(folder / LOCK, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise RunLockedError(
                f"{folder}: expected a run that no process is working on, but process {holder} is. "
                "Wait for it, or stop it, and try again."
            ) from None
        except OSError as error:  # ENOSYS of Lustre without -o flock, ENOLCK of NFS without its lock service
            raise RunFolderError(
                f"{folder}: expected a file system that locks files, got {error.strerror!r}. Else two jobs "
                "could work on one run: keep runs on another one (--runs), or have it mounted with flock."
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


def discard(folder: Path, *, timed: bool = False) -> bool:
    """Delete a run's folder if nothing was done in it: no metrics, checkpoints, or other files but warnings.

    Args:
        folder: made by `Run.create` in this very process, with no one else at work on it.
        timed: whether it is deleted too if rows of its first batch were run, and nothing came of them.

    Returns:
        Whether it is gone; not where the system refuses, which must not hide why the run was.
    """
    try:
        nothing = UNTOUCHED | COUNTED if timed else UNTOUCHED
        if {path.name for path in folder.iterdir()} - nothing or any((folder / CHECKPOINTS).iterdir()):
            return False
        shutil.rmtree(folder)
    except OSError:
        return False
    return True
