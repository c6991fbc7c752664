"""`WatchedFiles`: programs and other files that boxes name, which should not change while a run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.folder.machine import digest_of_files, stamp_of


class WatchedFiles:
    """Files, with what they were when they were last looked at; they count among a run's versions."""

    def __init__(self) -> None:
        self._marks: dict[Path, tuple[Any, ...] | None] = {}  # times and sizes, contents; None once changed

    def __iter__(self) -> Iterator[Path]:
        """Their paths."""
        return iter(self._marks)

    def begin(self, files: Sequence[Path]) -> None:
        """Watch these, and no others."""
        self._marks = {path: (stamp_of(path), digest_of_files([path])) for path in files}

    def changed(self) -> list[str]:
        """The names of the files that have changed since, each of them once.

        It compares times and sizes, and reads contents only where these changed.
        """
        changed = []
        for path, old_state in list(self._marks.items()):
            now = stamp_of(path)
            if old_state is None or now in (old_state[0], None):  # gone: it may be about to be replaced
                continue
            if digest_of_files([path]) == old_state[1]:
                self._marks[path] = now, old_state[1]
            else:
                self._marks[path] = None
                changed.append(path.name)
        return changed
