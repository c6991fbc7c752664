"""`room_for`: bytes that recorded rows may take, at most a share of what this process may have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from zo.tangents.models.rows import MOST_BYTES as MOST_OF_ROWS
from zo.tangents.replay.windows import MOST_BYTES as MOST_OF_WINDOWS

# decision 90:
SHARE_OF_ROWS, SHARE_OF_WINDOWS = 16, 8  # one part in so many, for rows to learn from, and to be replayed
CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # a limit from here on is none: version 1 has one in the place of a word


@dataclass(frozen=True)
class Room:
    """Bytes that a gradient's records may take.

    Attributes:
        rows: for rows to learn from, of all tangents together.
        windows: for windows to be replayed.
    """

    rows: int = MOST_OF_ROWS
    windows: int = MOST_OF_WINDOWS

    @classmethod
    def here(cls, *, shared: bool) -> Room:
        """What this machine has room for; the most where several, which may be others, are to do the same."""
        if shared:
            return cls()
        return cls(room_for(cls.rows, SHARE_OF_ROWS), room_for(cls.windows, SHARE_OF_WINDOWS))

    def plain(self) -> tuple[int, int]:
        """The two numbers, for a state."""
        return self.rows, self.windows


def room_for(most: int, share: int) -> int:
    """As many bytes as asked for, or one part in `share` of the memory where that is less."""
    memory = available()
    return most if memory is None else max(1, min(most, memory // share))


def available() -> int | None:
    """Bytes of memory that this process may have: the machine's, or its container's; None if not known."""
    limits = [limit for limit in (_physical(), *_of_groups()) if limit]
    return min(limits, default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _of_groups() -> list[int]:
    """The limits of the control groups that this process is in, and of those around them."""
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        group = root / path.lstrip("/")
        # in a container a group's path may be the host's, of which only the root is seen
        for folder in (group, *group.parents):
            limit = _read(folder / name)
            if limit is not None:
                limits.append(limit)
            if folder == root:
                break
    return limits


def _read(file: Path) -> int | None:
    try:
        words = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(words) if words.isdigit() and int(words) < UNLIMITED else None
