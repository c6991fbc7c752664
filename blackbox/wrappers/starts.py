"""Which blocks have begun, and in which process: one small file for each attempt, in a local folder.

Executors do not tell when a task begins or who runs it. A time limit, the blame for a dead worker and
an exact count of rows need both. Workers on other machines do not see the folder and note nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_WITHDRAWN = "withdrawn"
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has but the second, which there ends at once


@dataclass(frozen=True)
class Start:
    """A process that began a block."""

    process: int
    machine: str

    @property
    def own(self) -> bool:
        """Whether that is a thread of this very process."""
        return self.here and self.process == os.getpid()

    @property
    def here(self) -> bool:
        """Whether the process is on this machine."""
        return self.machine == platform.node()

    def kill(self) -> None:
        """End the process at once."""
        if self.here and not self.own:
            try:
                os.kill(self.process, _KILL)
            except (ProcessLookupError, PermissionError):
                pass  # gone already, and its number another's


def note_start(folder: str, block: str) -> bool:
    """Note in a worker that a block begins; False where it was withdrawn."""
    note = os.path.join(folder, f"{block}@{os.getpid()}@{platform.node()}@{uuid.uuid4().hex}")
    try:
        open(note, "x").close()
    except OSError:
        return True  # another machine, where the folder is not
    # Noted first, then looked: who withdraws does it the other way round, so one of the two sees the other.
    if not os.path.exists(os.path.join(folder, f"{block}@{_WITHDRAWN}")):
        return True
    Path(note).unlink(missing_ok=True)
    return False


class Starts:
    """The folder, as the process that hands out blocks sees it."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="blackbox-")
        weakref.finalize(self, _remove, self.folder, os.getpid())

    def all(self) -> dict[str, list[Start]]:
        """The starts of each block that has begun and was not forgotten."""
        found: dict[str, list[Start]] = {}
        for block, start in self._entries():
            found.setdefault(block, []).append(start)
        return found

    def forget(self, block: str) -> None:
        """Remove what was noted of a block."""
        for path in Path(self.folder).glob(f"{block}@*"):
            if not path.name.endswith(f"@{_WITHDRAWN}"):
                path.unlink(missing_ok=True)

    def withdraw(self, block: str) -> list[Start]:
        """A block that has not begun must not begin any more; gives the starts of one that has."""
        os.makedirs(self.folder, exist_ok=True)
        Path(self.folder, f"{block}@{_WITHDRAWN}").touch()
        return self.all().get(block, [])

    def _entries(self) -> Iterator[tuple[str, Start]]:
        os.makedirs(self.folder, exist_ok=True)  # cleaners of temporary folders come in long runs
        for name in os.listdir(self.folder):
            block, process, *rest = name.split("@")
            if process != _WITHDRAWN:
                yield block, Start(int(process), rest[0])


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker has the object too, and must not
        shutil.rmtree(folder, ignore_errors=True)
