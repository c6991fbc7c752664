"""`Budgeted`: no call starts that does not fit into what is left of a budget of rows."""

from __future__ import annotations

from torch import Tensor

from blackbox.errors import BudgetError, ConfigurationError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.wrapper import Wrapper


class Budgeted(Wrapper):
    """Refuse a whole call that would take the stack over `rows` evaluated rows.

    Under "keep", rows that are run again because their block raised can take a call that has
    started over the limit; they are counted, and the next call is refused. Rows that a `Cached`
    inside will answer cost nothing.

    Args:
        box: the black box whose rows cost something.
        rows: how many rows its ledger may reach, those before the wrapping included.

    Raises:
        ConfigurationError: `rows` is not a whole number >= 0.
        BudgetError: from a call that does not fit; none of its rows was run.
    """

    transparent = True

    def __init__(self, box: BlackBoxFunction, rows: int) -> None:
        """Check, then wrap."""
        super().__init__(box)
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
            raise ConfigurationError(
                f"Budgeted, rows: expected a whole number >= 0, got {rows!r}. Convert it with int()."
            )
        self.rows = rows

    @property
    def rows_left(self) -> int:
        """How many more rows may run."""
        return max(0, self.rows - self.ledger.rows_run)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run all rows or, where they do not fit, none."""
        asked = len(inputs[0])
        if asked > self.rows_left:  # only then is the cache asked twice
            asked = self.box.rows_to_run(inputs)
        if asked > self.rows_left:
            raise BudgetError(
                f"{self!r}: expected a call of at most {self.rows_left} rows, got one of {asked} "
                f"({self.ledger.rows_run} of {self.rows} are spent). None of it was run. "
                "Raise the budget, or plan fewer queries a step."
            )
        return self.box.run_rows(inputs)

    def __repr__(self) -> str:
        """With the budget."""
        return f"Budgeted({self.box!r}, rows={self.rows})"
