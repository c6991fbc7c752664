"""`Room`: the bytes that a gradient's records of rows may take, on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from zo.tangents.models.rows import MOST_BYTES as MOST_OF_ROWS
from zo.tangents.replay.available_memory import SHARE_OF_ROWS, SHARE_OF_WINDOWS, room_for
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
    def here(cls) -> Room:
        """Return the room on this machine."""
        return cls(room_for(MOST_OF_ROWS, SHARE_OF_ROWS), room_for(MOST_OF_WINDOWS, SHARE_OF_WINDOWS))

    def plain(self) -> tuple[int, int]:
        """The two numbers, for a state."""
        return self.rows, self.windows
