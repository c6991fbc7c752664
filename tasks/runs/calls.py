"""What the black boxes of a run have run in all, written down as they count it, so that no kill loses it.

A checkpoint has the rows of the steps before it. What a process had run after that, when it was killed, is
run again and counts twice: here, and nowhere else.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.runs import atomic

FOLDER = "calls"


class Note:
    """A file of one process: a number of rows of a ledger, and what a kill would make of it."""

    def __init__(self, folder: Path, late: bool, ends: bool, label: str = "") -> None:
        self._folder, self._late, self.ends, self._label = folder, late, ends, label
        self._rows, self._file = 0, -1

    def count(self, rows: int) -> None:
        """Some more rows are about to be run."""
        with atomic.writing(f"in {self._folder} that rows are run", _last_good):
            if self._file < 0:  # a process that asks nothing leaves nothing
                self._file = self._new_file()
            self._rows += rows
            self._write("at least" if self._late else "exactly")

    def end(self) -> None:
        """The process goes on without boxes, or ends by itself: it has counted everything."""
        if self._file >= 0:
            with suppress(OSError):  # then what it says already stays
                self._write("exactly" if self.ends else "at least")
            os.close(self._file)

    def _new_file(self) -> int:
        self._folder.mkdir(exist_ok=True)
        number = len(list(self._folder.iterdir()))
        while True:
            number += 1
            with suppress(FileExistsError):
                name = f"{number}.{self._label}" if self._label else str(number)
                return os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def _write(self, state: str) -> None:
        # one short write in the same place: a process that is killed has done all of it or nothing
        os.pwrite(self._file, f"{state:8} {self._rows:20}\n".encode(), 0)


def _last_good() -> str:
    return "`blackbox resume` goes on from the last checkpoint."


def read(folder: Path, label: str | None = None) -> dict[str, Any]:
    """The rows that all processes of a run have run, and whether there may be more.

    Args:
        folder: Of the run.
        label: Of the notes that are read; all if None.

    Returns:
        `rows`; and `exact`, which is False where a process was killed, or broke off, while others ran rows
        for it.
    """
    files = (folder / FOLDER).iterdir() if (folder / FOLDER).is_dir() else ()
    own = [path for path in files if label in (None, path.name.partition(".")[2])]
    lines = [path.read_text(encoding="utf-8").split() for path in own]
    whole = [line for line in lines if line]
    return {
        "rows": sum(int(line[-1]) for line in whole),
        "exact": len(whole) == len(lines) and all(line[0] == "exactly" for line in whole),
    }


def told(calls: dict[str, Any]) -> str:
    """In words: "1,234", or "at least 1,234"."""
    return f"{'' if calls['exact'] else 'at least '}{calls['rows']:,}"
