"""The count of all rows that a run's boxes have run, written down as they count, so that no kill loses it.

A checkpoint has the rows of the steps before it. Rows that a killed process had run after that are run again
and count twice: here, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.errors import StorageError
from tasks.folder import atomic, reading

FOLDER, SIZES = "calls", "calls.json"
_BEGUN, _ENDED = "begun", "ended"  # lines around rows that others run, which are counted when they are back
_LOST = "lost"  # a file, and its line: of rows whose notes are gone
_ROWS = re.compile(r"(\d{1,18}) ([\w.+-]*)")


class Notes:
    """The file of one process in a run's folder, to which each call of a box adds a line: its rows.

    Args:
        folder: The run's folder.
        rank: Number of the process, or a name. Each process has a file of its own, as they may be on several
            machines.
        late: Whether rows are counted only when they are back, so that a kill would leave some uncounted.
    """

    def __init__(self, folder: Path, rank: int | str, late: bool) -> None:
        self._folder, self._rank, self._late, self._file = folder / FOLDER, rank, late, -1
        self._error: StorageError | None = None

    def add(self, rows: int, label: str) -> None:
        """Some more rows of the boxes with this label are about to be run, or are back.

        Raises:
            StorageError: The disk did not take it, now or before: who asks a box may go on from an error.
        """
        self.refuse_lost()
        try:
            with atomic.writing(f"in {self._folder} that rows are run", _last_good):
                if self._file < 0:  # a process that asks nothing leaves nothing
                    self._folder.mkdir(exist_ok=True)
                    path = self._folder / str(self._rank)
                    self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    if self._late:
                        self._write(_BEGUN)
                self._write(f"{rows} {label}")
        except StorageError as error:
            self._error = error
            raise

    def refuse_lost(self) -> None:
        """Raise the error of an earlier `add`, if there was one."""
        if self._error is not None:
            raise self._error

    def end(self, whole: bool) -> None:
        """The process goes on without boxes, or ends by itself; `whole` says that it has counted all rows."""
        if self._file >= 0:
            with suppress(OSError):  # then there may be more, which is what the file says without that line
                if self._late and whole:
                    self._write(_ENDED)
            os.close(self._file)

    def _write(self, line: str) -> None:
        # one short write: a process that is killed has done all of it or nothing
        text = f"\n{line}".encode()
        count = os.write(self._file, text)
        if count < len(text):  # these rows are not run
            os.ftruncate(self._file, os.fstat(self._file).st_size - count)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _last_good() -> str:
    return "`blackbox resume` goes on from the last checkpoint."


def read(folder: Path, label: str | None = None) -> dict[str, Any]:
    """The rows that all processes of a run have run, and whether there may be more.

    Args:
        folder: The run's folder.
        label: Which rows are summed; all if None.

    Returns:
        `rows`; and `exact`, which is False where a process was killed, or broke off, while others ran rows
        for it.
    """
    rows, unknown = 0, 0
    for path in filter(Path.is_file, (folder / FOLDER).glob("*")):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            if match := _ROWS.fullmatch(line):
                rows += int(match[1]) if label in (None, match[2]) else 0
            elif line:  # one that cannot be read, after a power cut, is never ended
                unknown += -1 if line == _ENDED else 1
    return {"rows": rows, "exact": unknown == 0}


def keep_sizes(folder: Path) -> None:
    """Keep how long the files of a run's notes are, beside them: they only grow."""
    sizes = _sizes(folder)
    if sizes:
        atomic.write_json(folder / SIZES, sizes)


def note_lost(folder: Path) -> bool:
    """Note that notes are lost, where files are shorter than they were or missing; say whether that is new.

    From then on the rows are a bound, and `exact` is False.

    Raises:
        RunFolderError: The kept sizes of the files cannot be read.
    """
    try:
        sizes = reading.json_object(folder / SIZES, "Delete it.")
    except FileNotFoundError:
        return False
    now = _sizes(folder)
    longer = (size for name, size in sizes.items() if isinstance(size, int) and size > now.get(name, 0))
    if _LOST in now or not any(longer):
        return False
    (folder / FOLDER).mkdir(exist_ok=True)
    atomic.write_bytes(folder / FOLDER / _LOST, f"\n{_LOST}".encode())
    return True


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (folder / FOLDER).glob("*")}


def in_words(calls: dict[str, Any]) -> str:
    """Show the count: "1,234", or "at least 1,234"."""
    return f"{'' if calls['exact'] else 'at least '}{calls['rows']:,}"
