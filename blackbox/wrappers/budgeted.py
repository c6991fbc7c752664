"""`Budgeted`: no row is run beyond a budget of rows."""

from __future__ import annotations

from torch import Tensor

from blackbox.checks import check_count
from blackbox.errors import BudgetError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.ledger import Budget
from blackbox.words import counted
from blackbox.wrappers.wrapper import Wrapper


class Budgeted(Wrapper):
    """Refuse a whole call if it would take the stack over `rows` evaluated rows.

    The budget is exact wherever it stands among the wrappers. Rows that run again, by a `Retrying` or because
    their block raised, count too; if the budget does not allow that, they do not run again and have failed.
    So a call that has begun runs to its end. Rows that an inner `Cached` answers cost nothing. Threads may
    call at the same time, and none of their calls exceeds the budget. Only calls through this wrapper are
    refused; calls of the inner box itself are counted.

    Args:
        box: the black box whose rows cost something.
        rows: how many rows its ledger may reach, including those before the wrapping.

    Raises:
        ConfigurationError: `rows` is not a whole number >= 0.
        BudgetError: from a call that does not fit; none of its rows was run.
    """

    transparent = True

    def __init__(self, box: BlackBoxFunction, rows: int) -> None:
        """Check, then wrap."""
        super().__init__(box)
        self.rows = check_count("Budgeted", "rows", rows, least=0)
        self._budget = Budget(self.ledger, self.rows)

    @property
    def rows_left(self) -> int:
        """The number of rows that may still run."""
        return max(0, self.rows - self.ledger.rows_run)

    def give_up(self, rows: int) -> None:
        """Take rows out of the budget, which something else is about to run.

        Raises:
            BudgetError: fewer are left; none is taken out.
        """
        if rows > self._budget.free:
            raise BudgetError(
                f"{self!r}: expected at most the {self.rows_left} rows that are left, got {rows} to be run "
                "elsewhere. None of them was run. Raise the budget."
            )
        self.rows -= rows
        self._budget.rows -= rows

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run all rows or, if they do not fit, none."""
        rows = len(inputs[0])
        with self._budget.reserved(rows) as fits:
            if fits:
                return self.box.run_rows(inputs)
        rows = self.box.rows_to_run(inputs)  # fewer than there are where a cache has some of them
        with self._budget.reserved(rows) as fits:
            if fits:
                return self.box.run_rows(inputs)
        raise BudgetError(
            f"{self!r}: expected a call of at most {counted(self.rows_left, 'row')}, got one of {rows:,} "
            f"({self.ledger.rows_run:,} of {self.rows:,} are spent). None of it was run. "
            "Raise the budget, or plan fewer queries a step."
        )

    def __repr__(self) -> str:
        """Show the box and the budget."""
        return f"Budgeted({self.box!r}, rows={self.rows})"
