"""The ledger: rows that a stack of wrappers was asked for, ran and lost; and budgets that it keeps to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from threading import Condition
from typing import Any, ClassVar

from blackbox.checks import nearest
from blackbox.errors import BudgetError, ConfigurationError
from blackbox.failures import FailedRow, Failure

_KINDS = {
    Failure.RAISED: "rows_raised",
    Failure.NON_FINITE: "rows_not_finite",
    Failure.TIMED_OUT: "rows_timed_out",
    Failure.LOST: "rows_lost",
}

# One for all ledgers and budgets: a lock of a ledger's own could not be pickled with its box, and a row must
# be counted in the very moment in which a budget lets it pass.
_counting = Condition()


@dataclass
class Ledger:
    """Counts of one black box and all the wrappers around it, since it was created.

    Attributes:
        calls: calls of the outermost box.
        rows_asked: rows in those calls.
        rows_run: rows that the innermost box evaluated; a row evaluated twice counts twice.
        rows_cached: rows answered from a cache.
        rows_failed: rows that raised or came back non-finite, and were not recovered by another attempt.
        rows_skipped: rows not run because their input was already not finite.
        seconds: time spent inside the innermost box.
        rows_raised: failed rows whose box raised an error other than `TimeoutError`.
        rows_not_finite: failed rows whose box returned a value that is not finite.
        rows_timed_out: failed rows that exceeded their time limit: a wrapper gave them up, or the box raised
            `TimeoutError`.
        rows_lost: failed rows whose workers died.
        rows_retried: rows that failed and were run again by a `Retrying`, counted each time.
        rows_recovered: failed rows that a `Fallback` has answered.
        causes: how many times a row failed, by the type of the exception or the kind of failure. Attempts
            that a `Retrying` repeated are included, so that a box's problems show even if no row is lost.
        first_failure: the first row that failed in any attempt, in words: its place in the call, a summary of
            its inputs, outputs that are not finite, and the cause; None if none has failed.
    """

    calls: int = 0
    rows_asked: int = 0
    rows_run: int = 0
    rows_cached: int = 0
    rows_failed: int = 0
    rows_skipped: int = 0
    seconds: float = 0.0
    rows_raised: int = 0
    rows_not_finite: int = 0
    rows_timed_out: int = 0
    rows_lost: int = 0
    rows_retried: int = 0
    rows_recovered: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    first_failure: str | None = None
    _watcher: ClassVar[Callable[[int], None] | None] = None
    _added: ClassVar[frozenset[object]] = frozenset()

    def count_failed(
        self, failed: Mapping[int, FailedRow], where: Callable[[int], str] | None = None
    ) -> None:
        """Count the failed rows of a call, in total and by kind; `where(row)` describes a row."""
        self._note(failed, where)
        kinds = Counter(_KINDS[row.failure] for row in failed.values())
        self.count(rows_failed=len(failed), **kinds)

    def count_retried(
        self, failed: Mapping[int, FailedRow], where: Callable[[int], str] | None = None
    ) -> None:
        """Count failed rows that are about to be run again."""
        self._note(failed, where)
        self.count(rows_retried=len(failed))

    def _note(self, failed: Mapping[int, FailedRow], where: Callable[[int], str] | None) -> None:
        with _counting:
            for row in sorted(failed):
                cause = failed[row].cause()
                self.causes[cause] = self.causes.get(cause, 0) + 1
                if self.first_failure is None:
                    which = "" if where is None else f"{where(row)}: "
                    self.first_failure = which + failed[row].sentence()

    @property
    def has_answered(self) -> bool:
        """True if a row has ever come back; no count, so no part of the ledger's stored or compared state."""
        return vars(self).get("_answered", False)

    def note_answer(self) -> None:
        """Take in that a row has come back."""
        vars(self)["_answered"] = True

    def is_new(self, notice: str) -> bool:
        """Say whether a notice is given for the first time; from now on it is not. No count either."""
        notices: set[str] = vars(self).setdefault("_notices", set())
        new = notice not in notices
        notices.add(notice)
        return new

    def failures(self) -> dict[str, int]:
        """Failed and skipped rows by kind, without kinds that did not occur."""
        kinds = {
            name.removeprefix("rows_"): getattr(self, name) for name in (*_KINDS.values(), "rows_skipped")
        }
        return {name: count for name, count in kinds.items() if count}

    def count(self, **amounts: float) -> None:
        """Add to the counts of these names; threads that share a box lose none.

        Rows that are about to be run are counted by `spend`, which keeps to the budget.
        """
        with _counting:
            self._count(amounts)
            if self._watcher is not None and amounts.get("rows_run"):
                self._watcher(int(amounts["rows_run"]))

    def _count(self, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)
        if "rows_run" in amounts:
            for share in self._shares():
                share.use(int(amounts["rows_run"]))

    @property
    def watched(self) -> bool:
        """True if a function is called for each row, see `watch`."""
        return self._watcher is not None

    def watch(self, watcher: Callable[[int], None] | None) -> None:
        """Have a function called with the number of rows whenever some are counted as run; None ends that.

        A box that this process evaluates counts rows before they are run, workers when they are back. What is
        added by `add`, such as the counts of an earlier process, is not reported, and copies are not watched.
        """
        vars(self)["_watcher"] = watcher  # of this ledger alone, and no field: it is no count

    def __getstate__(self) -> dict[str, Any]:
        """The counts alone."""
        return asdict(self)

    def spend(self, rows: int) -> None:
        """Count rows that are about to be run.

        Raises:
            BudgetError: a `Budgeted` around this call has not that many left; none is to be run.
        """
        with _counting:
            for share in self._shares():
                self._refuse_beyond(share, rows - share.rows, rows)
            self.count(rows_run=rows)

    def claim(self, rows: int) -> None:
        """Set more rows aside for this call, which are about to be run again.

        Raises:
            BudgetError: a `Budgeted` around this call has not that many left; none is to be run again.
        """
        with _counting:
            for share in self._shares():
                self._refuse_beyond(share, rows, rows)
            for share in self._shares():
                share.grow(rows)

    def _refuse_beyond(self, share: Share, more: int, rows: int) -> None:
        if max(0, more) > share.budget.free:
            raise BudgetError(
                f"Budgeted: expected rows that {share.budget.rows} leave, of which {self.rows_run} are spent "
                f"and {share.budget.set_aside} are set aside, got {rows} that are to be run. None of them "
                "was run. Raise the budget, or allow fewer attempts."
            )

    def lend(self, rows: int, part: float) -> Loan | None:
        """Take rows out of the budgets around this call for a worker that counts in a ledger of its own.

        Args:
            rows: how many rows the worker needs.
            part: a further loan for rows that it runs again, as a part of the rows that nobody has set aside.

        Returns:
            The loan, to be ended by `settle`; None where no budget bounds it.

        Raises:
            BudgetError: a `Budgeted` around this call has not that many left.
        """
        with _counting:
            shares = self._shares()
            if not shares:
                return None
            for share in shares:
                self._refuse_beyond(share, rows - share.rows, rows)
                share.grow(max(0, rows - share.rows))
            loan = Loan(rows, int(part * max(0, min(share.budget.free for share in shares))))
            for share in shares:
                share.grow(loan.spare)
                share.rows -= loan.total  # set aside still, and for nobody but the worker
            return loan

    def settle(self, loan: Loan | None, counts: Ledger) -> None:
        """Take back what a worker was lent, and add what it has counted.

        What it has not run of the rows that it needed stays set aside: they may be run again.
        """
        with _counting:
            shares = [] if loan is None else self._shares()
            for share in shares:
                share.rows += loan.total if loan else 0
            self.add(counts)
            if self._watcher is not None and counts.rows_run:
                self._watcher(counts.rows_run)
            for share in shares:
                share.grow(max(loan.rows, counts.rows_run) - loan.total if loan else 0)

    def bounded(self) -> bool:
        """Say whether a `Budgeted` around this call bounds the rows that it may run."""
        return bool(self._shares())

    def _shares(self) -> list[Share]:
        return [share for share in _shares.get() if share.budget.ledger is self]

    def add(self, other: Ledger) -> None:
        """Add another's counts to this one: a worker's, or those of a run that was interrupted."""
        with _counting:
            self._count({name: getattr(other, name) for name in _NUMBERS})
            self.causes = dict(Counter(self.causes) + Counter(other.causes))
            self.first_failure = self.first_failure or other.first_failure

    def add_once(self, key: object, other: Ledger) -> None:
        """Add the counts of an earlier process, unless those of the same key were added before.

        Args:
            key: The key of the counts, such as a run's folder; anything that can be hashed.
            other: The counts.
        """
        with _counting:
            if key not in self._added:
                vars(self)["_added"] = self._added | {key}  # no field: it is no count
                self.add(other)

    def copy(self) -> Ledger:
        """The counts as they stand now."""
        with _counting:
            return Ledger(**asdict(self))

    def since(self, earlier: Ledger) -> Ledger:
        """Return the counts after `earlier`, a copy taken before; the first failure if there was none yet."""
        return Ledger(
            **{name: getattr(self, name) - getattr(earlier, name) for name in _NUMBERS},
            causes=dict(Counter(self.causes) - Counter(earlier.causes)),
            first_failure=self.first_failure if earlier.first_failure is None else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain data, for a checkpoint."""
        return asdict(self.copy())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counts of a checkpoint, in the place of this ledger's own.

        Raises:
            ConfigurationError: the state has other names than `state_dict` gives.
        """
        names = [item.name for item in fields(self)]
        if set(state) != set(names):
            odd = min(set(state) ^ set(names))
            raise ConfigurationError(
                f"Ledger.load_state_dict: expected the names that state_dict gives, got a state that "
                f"{'has' if odd in state else 'lacks'} {odd!r}. {nearest(odd, names)}"
            )
        with _counting:
            for name in names:
                setattr(self, name, dict(state[name]) if name == "causes" else state[name])


_NUMBERS = tuple(item.name for item in fields(Ledger) if item.name not in ("causes", "first_failure"))


class Budget:
    """A bound on the rows that a ledger may count, and what calls under way have set aside of them.

    Args:
        ledger: the ledger whose `rows_run` is bounded.
        rows: the bound.
    """

    def __init__(self, ledger: Ledger, rows: int) -> None:
        self.ledger, self.rows, self.set_aside = ledger, rows, 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it without the rows that threads of this process have set aside."""
        return Budget, (self.ledger, self.rows)

    @property
    def free(self) -> int:
        """Rows that are neither spent nor set aside; below zero where calls past the budget ran rows."""
        return self.rows - self.ledger.rows_run - self.set_aside

    @contextmanager
    def reserved(self, rows: int) -> Iterator[bool]:
        """Set rows aside for the calls of this block, if there are that many; what they leave is free again.

        Where rows are short because other threads have set some aside, it waits for what those will leave.

        Args:
            rows: how many.

        Yields:
            Whether the rows are set aside.
        """
        share = Share(self)
        with _counting:
            while self.set_aside and rows > self.free:
                _counting.wait()
            fits = rows <= self.free
            share.grow(rows if fits else 0)
        token = _shares.set((*_shares.get(), share))
        try:
            yield fits
        finally:
            _shares.reset(token)
            with _counting:
                share.grow(-share.rows)
                _counting.notify_all()


class Share:
    """The rows that one call has set aside of a budget and not spent yet."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.rows = budget, 0

    def grow(self, rows: int) -> None:
        """Set more aside, or less."""
        self.rows += rows
        self.budget.set_aside += rows

    def use(self, rows: int) -> None:
        """Take away what is spent."""
        self.grow(-min(rows, self.rows))


@dataclass(frozen=True)
class Loan:
    """Rows that a worker with a ledger of its own may run: those that it needs, and some to run again."""

    rows: int
    spare: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.rows + self.spare


# The shares of the call that is under way in this context; wrappers hand them to the threads that they start.
_shares: ContextVar[tuple[Share, ...]] = ContextVar("blackbox.ledger.shares", default=())
