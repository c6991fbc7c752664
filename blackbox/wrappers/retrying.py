"""`Retrying`: rows that failed are run again, and only those."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

from torch import Tensor

from blackbox.checks import check_count, check_number, check_positive
from blackbox.ending import pause, stopped
from blackbox.errors import BudgetError, ConfigurationError, OutputError, TryAgain, WaitWarning
from blackbox.failures import FailedRow, Outcome
from blackbox.function import BlackBoxFunction
from blackbox.notices import warn
from blackbox.running import PROBED, failed_alike, rows_of, write_rows
from blackbox.wrappers.wrapper import Wrapper

_CHANCE = random.SystemRandom()  # other numbers in each process, or all workers would wait equally long


_LONGEST = 60.0  # seconds that the backoff grows to


class Retrying(Wrapper):
    """Run failed rows again, up to `attempts` times in all; what still fails is left to the policy.

    This is for temporary faults: a busy server, a licence that is not free, a noisy solver. Failed rows go to
    the box together as one smaller call, so a box whose answers depend on a row's batch-mates agrees only up
    to rounding. Every attempt counts as rows run, and its failures are in the ledger's `rows_retried` and
    `causes`. A fault of the box rather than of a row (`OutputError`, `ConfigurationError`, ...) is raised at
    once. If a budget, inside or around, does not allow another attempt, the attempts end. A box that raises
    `TryAgain(after=seconds)` is not called for that long.

    What another attempt cannot mend, such as a key that the service refuses, is named by its exception in
    `permanent`, and not retried. Where all rows of a call, eight or more, failed with the same error, an
    attempt begins with one of them, and the others follow if that one does not fail with the same error
    again: a server that is down gets one row an attempt.

    A running attempt is never interrupted: Python code cannot be stopped from inside its own process. For a
    limit that kills, use `Parallel` with processes, or a command line's timeout.

    Args:
        box: the black box whose rows sometimes fail.
        attempts: the most times a row runs, including the first.
        timeout: seconds after the start of a call beyond which no further attempt begins.
        backoff: seconds before the second attempt, doubled before each further one, up to a minute. A random
            part of up to half is left out, so that many workers do not come back at once. The wait that a
            `TryAgain` asks for is not shortened; a longer one than a minute is told.
        permanent: kinds of exceptions after which a row is not run again, such as `(PermissionError,)`.

    Raises:
        ConfigurationError: a setting is out of range.
    """

    transparent = True

    def __init__(
        self,
        box: BlackBoxFunction,
        attempts: int = 3,
        timeout: float | None = None,
        backoff: float = 0.0,
        *,
        permanent: type[Exception] | Sequence[type[Exception]] = (),
    ) -> None:
        """Check, then wrap."""
        super().__init__(box)
        self.attempts = check_count("Retrying", "attempts", attempts)
        self.timeout = None if timeout is None else check_positive("Retrying", "timeout", timeout)
        self.backoff = check_number("Retrying", "backoff", backoff, least=0)
        self.permanent = _checked_kinds(permanent)
        self.isolates = True

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """All rows, then those that failed, until none fails or the attempts are used up."""
        started = monotonic()
        outcome = self.box.run_rows(inputs)
        for attempt in range(1, self.attempts):
            rows = [row for row in sorted(outcome.failed) if not self._is_permanent(outcome.failed[row])]
            waits = [why.error.after for why in outcome.failed.values() if isinstance(why.error, TryAgain)]
            wait = max(self._wait(attempt), *waits, 0.0)
            late = self.timeout is not None and monotonic() - started + wait >= self.timeout
            if not rows or late or stopped():
                break
            if len(rows) == len(inputs[0]) >= PROBED and failed_alike(outcome.failed.values()):
                probe, *remaining_rows = rows
                previous_failure = outcome.failed[probe]
                if not self._again(inputs, outcome, [probe], wait):
                    break
                now = outcome.failed.get(probe)
                if now is not None and (self._is_permanent(now) or failed_alike([previous_failure, now])):
                    continue
                rows, wait = remaining_rows, 0.0
            if not self._again(inputs, outcome, rows, wait):
                break
        return outcome

    def _again(self, inputs: tuple[Tensor, ...], outcome: Outcome, rows: list[int], wait: float) -> bool:
        """Run these rows once more, after a wait in seconds; False where the budget does not allow it."""
        try:
            self.ledger.claim(len(rows))
            warn_of_wait(self.box, wait, "; or give Retrying a timeout: then rows fail")
            if wait > 0:
                pause(wait)
            again = self.box.run_rows(rows_of(inputs, rows))
        except BudgetError:
            return False  # the answers of the first attempts are paid for and stay
        failed = {row: outcome.failed.pop(row) for row in rows}
        self.ledger.count_retried(
            failed, partial(self._whereabouts, inputs, Outcome(outcome.outputs, failed))
        )
        write_rows(outcome, rows, again)
        return True

    def _is_permanent(self, why: FailedRow) -> bool:
        # the same rows of other lengths would come again: a run ended early, or the specs are wrong
        return isinstance(why.error, (OutputError, *self.permanent))

    def _wait(self, attempt: int) -> float:
        """Seconds before this attempt; the first attempt is number 0."""
        whole_wait = min(self.backoff * 2.0 ** min(attempt - 1, 1000), _LONGEST)
        return whole_wait * _CHANCE.uniform(0.5, 1)

    def __repr__(self) -> str:
        """Show the box and the attempts."""
        return f"Retrying({self.box!r}, attempts={self.attempts})"


def warn_of_wait(box: BlackBoxFunction, seconds: float, mend: str = "") -> None:
    """Warn before a wait of more than a minute, for which only a box asks.

    Args:
        box: the box.
        seconds: how long.
        mend: what else can be done, behind a semicolon.

    Warns:
        WaitWarning: it is more than a minute.
    """
    if seconds > _LONGEST:
        warn(
            f"Expected {box!r} to answer within a minute, but it asks to be left alone for "
            f"{seconds:,.0f} s (TryAgain), and nothing runs until then. Wait; or stop, a run by Ctrl-C "
            f"twice, and resume when it answers again{mend}.",
            WaitWarning,
        )


def _checked_kinds(permanent: Any) -> tuple[type[Exception], ...]:
    kinds = tuple(permanent) if isinstance(permanent, tuple | list) else (permanent,)
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise ConfigurationError(
            f"Retrying, permanent: expected kinds of exceptions, got {permanent!r}. Write a tuple of them, "
            "such as (PermissionError,)."
        )
    return kinds
