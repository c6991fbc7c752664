"""`Pace`: the times at which a run writes its progress down: soon, and never for much of its time."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

SOON, OFTEN, SELDOM = 1.0, 5.0, 300.0  # seconds
SHARE = 20.0  # times what a write takes, work lies between two


class Pace:
    """The decision that it is time to write: a second after the start, later every five.

    The first write is early because a process that is killed before it has nothing to show for its start
    either, and one that is always killed then would never get further. Where writing takes long it is less
    often, so that it takes at most a twentieth of the time; but every five minutes at least.

    Args:
        clock: Gives seconds; the system's if None.

    Attributes:
        often: Seconds between later writes, where these take no time; 0 to write each time.
    """

    def __init__(self, clock: Callable[[], float] | None = None, often: float = OFTEN) -> None:
        self.often, self._clock = often, clock or monotonic
        self._wait, self._since = min(SOON, often), self.now()

    @property
    def due(self) -> bool:
        """True if it is time to write."""
        return self._clock() - self._since >= self._wait

    def begin(self) -> None:
        """Work begins: what was before it needs no writing."""
        self._since = self._clock()

    def wrote(self, started: float) -> None:
        """It was written, from a time of the clock on until now."""
        self._since = self._clock()
        took = self._since - started
        self._wait = min(SELDOM, max(min(2 * self._wait, self.often), SHARE * took)) if self.often else 0.0

    def now(self) -> float:
        """The time of the clock."""
        return self._clock()
