"""`Room`: the bytes that a gradient's records of rows may take, on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from zo.tangents.models.rows import MOST_BYTES as MOST_OF_ROWS
from zo.tangents.replay.memory import SHARE_OF_ROWS, SHARE_OF_WINDOWS, room_for
from zo.tangents.replay.windows import MOST_BYTES as MOST_OF_WINDOWS


@dataclass(frozen=True)
class Room:
    """Bytes that a gradient's records may take.

    Attributes:
        rows: bytes for rows to learn from, of all tangents together.
        windows: bytes for windows to be replayed.
    """

    rows: int
    windows: int

    @classmethod
    def most(cls) -> Room:
        """The most that there is ever."""
        return cls(MOST_OF_ROWS, MOST_OF_WINDOWS)

    @classmethod
    def here(cls, *, shared: bool) -> Room:
        """Return the room on this machine; the most where machines, which may differ, are to do the same."""
        most = cls.most()
        if shared:
            return most
        return cls(room_for(most.rows, SHARE_OF_ROWS), room_for(most.windows, SHARE_OF_WINDOWS))

    def plain(self) -> tuple[int, int]:
        """The two numbers, for a state."""
        return self.rows, self.windows
