"""What boxes run to make a problem's data: kept in the run's folder, counted, and bounded by its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from blackbox import BlackBoxFunction, Budgeted, BudgetError
from tasks.runs import calls
from tasks.runs.answers import Answers
from tasks.tally import counted_late, evaluated, stack
from tasks.workers import group

LABEL = "data"  # of the rows of boxes that are not the problem's own, in the run's calls


class Making:
    """The rows by which a problem's data are made.

    What the problem's own boxes run is counted with them; what others run, such as a fine solver that only
    `data` knows, is counted here.

    Args:
        rows: The budget of the run; None for no limit.

    Attributes:
        answers: To the rows of both.
        elsewhere: Rows that other boxes have run, those of earlier processes included.
    """

    def __init__(self, rows: int | None) -> None:
        self.answers, self.elsewhere, self._budget = Answers("data"), 0, rows
        self._folder: Path | None = None
        self._notes: dict[bool, calls.Notes] = {}
        self._unnoted: list[tuple[int, bool]] = []
        self._own: Callable[[], Sequence[BlackBoxFunction]] = list
        self._within_reach = True

    @contextmanager
    def attached(self, folder: Path, code: Mapping[str, str], *, within_reach: bool) -> Iterator[None]:
        """A block in which there is a run's folder.

        Args:
            folder: Of the run; of several processes the first one's, where all can reach it.
            code: Versions of the code.
            within_reach: Whether all processes can reach it.
        """
        self._folder, self._within_reach = folder, within_reach
        self.elsewhere += calls.read(folder, LABEL)["rows"]
        self.answers.attach(folder, group.rank(), code)
        self.answers.process_group = group.process_group()
        for rows, late in self._unnoted:
            self._note(rows, late)
        self._unnoted = []
        whole = False
        try:
            yield
            whole = within_reach
        finally:
            self.answers.process_group, self._folder = None, None
            for notes in self._notes.values():
                notes.end(whole)
            self._notes = {}

    @contextmanager
    def block(self, own: Callable[[], Sequence[BlackBoxFunction]]) -> Iterator[None]:
        """A block whose rows make data.

        Args:
            own: Gives the problem's boxes, those that it has made by then.
        """
        self._own = own
        with self.answers.used(self._before, lambda box: not self._is_own(box)):
            yield
        self.answers.write()

    def _is_own(self, box: BlackBoxFunction) -> bool:
        return any(evaluated(each).ledger is box.ledger for each in self._own())

    def _before(self, box: BlackBoxFunction, rows: int) -> None:
        """Other boxes' rows are about to be run: they are taken out of the budget, and watched."""
        if self._is_own(box):
            return
        bounds = {id(part): part for each in self._own() for part in stack(evaluated(each))}
        budgets = [part for part in bounds.values() if isinstance(part, Budgeted)]
        if self._budget is not None and self.elsewhere + rows > self._budget:
            raise BudgetError(
                f"data: expected at most {self._budget:,} rows in the run, got {rows} more of {box!r}, "
                f"beside {self.elsewhere:,} that have made data. None of them was run. Raise --rows."
            )
        for part in budgets if self._budget is not None else ():
            part.give_up(rows)
        late = counted_late(box)
        if not box.ledger.watched:
            box.ledger.watch(lambda count: self._ran(count, late))

    def _ran(self, rows: int, late: bool) -> None:
        self.elsewhere += rows
        if self._folder is None:
            self._unnoted.append((rows, late))
        else:
            self._note(rows, late)

    def _note(self, rows: int, late: bool) -> None:
        if late not in self._notes:
            name = f"{LABEL}{'-late' if late else ''}-{group.rank()}"
            assert self._folder is not None
            self._notes[late] = calls.Notes(self._folder, name, late or not self._within_reach)
        self._notes[late].add(rows, LABEL)
