"""`Budgeted`: no call starts that does not fit into what is left of a budget of rows."""

from __future__ import annotations

from threading import Condition
from typing import Any

from torch import Tensor

from blackbox.checks import check_count
from blackbox.errors import BudgetError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.wrapper import Wrapper


class Budgeted(Wrapper):
    """Refuse a whole call that would take the stack over `rows` evaluated rows.

    Under "keep", rows that are run again because their block raised can take a call that has
    started over the limit; they are counted, and the next call is refused. Rows that a `Cached`
    inside will answer cost nothing. Threads may call at the same time: none of their calls goes over.

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
        self.rows = check_count("Budgeted", "rows", rows, least=0)
        self._restart()

    @property
    def rows_left(self) -> int:
        """How many more rows may run."""
        return max(0, self.rows - self.ledger.rows_run)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run all rows or, where they do not fit, none."""
        asked = self._reserve(inputs)
        try:
            return self.box.run_rows(inputs)
        finally:
            with self._change:
                self._reserved -= asked
                self._change.notify_all()

    def _reserve(self, inputs: tuple[Tensor, ...]) -> int:
        """How many rows the call needs; set aside, so that no other thread's call takes them too."""
        asked = len(inputs[0])
        with self._change:
            # Of what is set aside some may be spent already: a call that might yet fit waits to know.
            while self._reserved and asked > self.rows_left - self._reserved:
                self._change.wait()
            if asked > self.rows_left:  # only then is the cache asked twice
                asked = self.box.rows_to_run(inputs)
            if asked > self.rows_left:
                raise BudgetError(
                    f"{self!r}: expected a call of at most {self.rows_left} rows, got one of {asked} "
                    f"({self.ledger.rows_run} of {self.rows} are spent). None of it was run. "
                    "Raise the budget, or plan fewer queries a step."
                )
            self._reserved += asked
        return asked

    def _restart(self) -> None:
        self._change, self._reserved = Condition(), 0

    def __getstate__(self) -> dict[str, Any]:
        """Without what threads of this process have set aside."""
        return {name: value for name, value in vars(self).items() if name not in ("_change", "_reserved")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With nothing set aside."""
        vars(self).update(state)
        self._restart()

    def __repr__(self) -> str:
        """With the budget."""
        return f"Budgeted({self.box!r}, rows={self.rows})"
