"""The lock of a run folder: one process at a time, freed by the system however the process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import RunLockedError

NAME = ".lock"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock file stays behind, empty of meaning once its process is gone.

    Raises:
        RunLockedError: another process holds it; the message gives its id.
    """
    # "a+": opening must not wipe the other process's id
    with open(folder / NAME, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise RunLockedError(
                f"{folder}: expected a run that no process is working on, but process {holder} is. "
                "Wait for it, or stop it, and try again."
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
