"""`RateLimited`: no more rows a second than a server, a licence or a bill allows."""

from __future__ import annotations

from threading import Lock
from time import monotonic
from typing import Any

from torch import Tensor

from blackbox.checks import check_count, check_positive
from blackbox.ending import pause
from blackbox.errors import TryAgain
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.running import in_blocks
from blackbox.wrappers.retrying import warn_of_wait
from blackbox.wrappers.wrapper import Wrapper


class RateLimited(Wrapper):
    """Delay rows so that at most `per_second` start each second, after a first `block`.

    This is a token bucket that holds `block` tokens and starts full: in any t seconds at most `block +
    per_second * t` rows start. Longer calls go to the box in blocks of that many rows, so the result is that
    of the box called with such blocks. Threads share the limit; processes do not, so put `RateLimited` around
    `Parallel`, not inside it. Rows that an inner `Cached` will answer take no tokens. After a row that raised
    `TryAgain(after=seconds)`, no further row starts for that long, and of more than a minute a warning tells;
    the row itself has failed, unless a `Retrying` runs it again.

    Args:
        box: the black box to limit.
        per_second: rows per second, any number > 0 (0.1 is one in ten seconds).
        block: rows that may start at once; None for a second's worth (at least one).

    Raises:
        ConfigurationError: a setting is out of range.

    Warns:
        WaitWarning: the box asks to be left alone for more than a minute.
    """

    transparent = True

    def __init__(self, box: BlackBoxFunction, per_second: float, *, block: int | None = None) -> None:
        """Check, then wrap."""
        super().__init__(box)
        self.per_second = check_positive("RateLimited", "per_second", per_second)
        self.block = max(1, int(per_second)) if block is None else check_count("RateLimited", "block", block)
        self._restart()

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Block by block, each as soon as its tokens are available."""
        return in_blocks(self.box, inputs, self.block, self._run)

    def _run(self, box: BlackBoxFunction, part: tuple[Tensor, ...]) -> Outcome:
        self._wait_for(box.rows_to_run(part))
        answers = box.run_rows(part)
        self._leave_alone(answers)
        return answers

    def _wait_for(self, rows: int) -> None:
        """Take the tokens at once, and wait until they would have been there."""
        with self._lock:
            now = monotonic()
            start = max(now, self._quiet_until)
            self._tokens = min(self.block, self._tokens + (start - self._then) * self.per_second) - rows
            self._then = start
            wait = start - now + max(0.0, -self._tokens / self.per_second)
        warn_of_wait(self.box, start - now)
        if wait > 0:
            pause(wait)

    def _leave_alone(self, answers: Outcome) -> None:
        """Start no row for as long as the box asks for."""
        waits = [why.error.after for why in answers.failed.values() if isinstance(why.error, TryAgain)]
        if waits:
            with self._lock:
                self._quiet_until = max(self._quiet_until, monotonic() + max(waits))

    def _restart(self) -> None:
        self._lock = Lock()
        self._tokens, self._then = float(self.block), monotonic()
        self._quiet_until = self._then

    def __getstate__(self) -> dict[str, Any]:
        """Pickle it without lock and bucket: another process has another clock."""
        of_this_process = ("_lock", "_tokens", "_then", "_quiet_until")
        return {name: value for name, value in vars(self).items() if name not in of_this_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore it with a full bucket."""
        vars(self).update(state)
        self._restart()

    def __repr__(self) -> str:
        """Show the box and the rate."""
        return f"RateLimited({self.box!r}, per_second={self.per_second:g})"
