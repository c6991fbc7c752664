"""`room_for`: bytes that recorded rows may take, at most a share of what this process may have."""

from __future__ import annotations

import os
from pathlib import Path

# decision 90:
SHARE_OF_ROWS, SHARE_OF_WINDOWS = 16, 8  # one part in so many, for rows to learn from, and to be replayed
CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # a limit from here on is none: version 1 has one in the place of a word


def room_for(most: int, share: int) -> int:
    """Return the bytes asked for, or one part in `share` of the memory where that is less."""
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
    """The limits of the control groups that this process is in, and of the groups around them."""
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
