"""`RunLedger`: the rows that a run's boxes run, from its first question on: written down, bounded, kept.

A run asks its boxes for rows before it has a folder (where `Problem.check` does), to make its data, and to
train and judge. No kill may lose count of them, and none may pass the budget.

The way of a row: `blackbox.Ledger.spend` counts it before the box runs it. `blackbox.Budgeted`, which `bound`
puts around each box, raises a `BudgetError` where it would pass the budget, and that ends the run.
`tasks/folder/row_counts.py` notes it on disk, and `recall` adds what is noted when a run goes on. Plans that
would spend more are refused before (`tasks/planning/spending.py`), and once a test has shown what it costs
(`tasks/running/table.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import zo
from blackbox import BlackBoxFunction, Budgeted, Ledger
from blackbox.box_group import BoxGroup
from blackbox.errors import BudgetError
from tasks.errors import Interrupted, ProblemError
from tasks.folder import checkpoint, row_counts
from tasks.folder.run import Run
from tasks.problem.problem import Problem
from tasks.rows.kept_answers import KeptAnswers
from tasks.rows.stacks import counted_late, evaluated, stack
from tasks.rows.tally import RowTally
from tasks.workers import group

DATA = "data"  # the label of rows that boxes run to make data which are not the problem's, in the run's calls


class RunLedger:
    """The rows of one run of a problem: of its boxes, and of other boxes that make its data.

    A run needs the methods in this order: `unwritten`, `in_folder`, `bound` and `written`; `rows_of_data` and
    `making` wherever data is made.

    Args:
        rows: The budget of the run; None for no limit.

    Attributes:
        answers: The answers to the rows that make data.
        elsewhere: Rows that other boxes than the problem's have run, such as a fine solver that only `data`
            knows, with the rows of earlier processes.
    """

    def __init__(self, rows: int | None) -> None:
        self.answers, self.elsewhere, self._budget = KeptAnswers(DATA), 0, rows
        self._folder: Path | None = None
        self._code: Mapping[str, str] = {}  # the versions that answers depend on
        self._within_reach = True  # whether all processes of the run reach the folder
        self._notes: dict[bool, row_counts.Notes] = {}
        self._unwritten: dict[
            int, int
        ] = {}  # rows of the problem's boxes without a note, by their ledger's id
        self._unwritten_elsewhere: list[tuple[int, bool]] = []
        self._own_boxes: Callable[[], Sequence[BlackBoxFunction]] = list
        self._bounds: list[Budgeted] = []  # that `bound` made
        self._tally, self._start = RowTally([]), Ledger()  # of the problem's boxes; when the run began

    @contextmanager
    def unwritten(self, boxes: Callable[[], Sequence[BlackBoxFunction]]) -> Iterator[None]:
        """A block before rows are written down: `written` makes up for the rows that it runs.

        Args:
            boxes: Gives those that have been made; asked before and after.
        """
        rows_before = {id(ledger): ledger.rows_run for ledger in _labelled(boxes()).values()}
        yield
        for ledger in _labelled(boxes()).values():
            more = ledger.rows_run - rows_before.get(id(ledger), 0)
            self._unwritten[id(ledger)] = self._unwritten.get(id(ledger), 0) + more

    @contextmanager
    def in_folder(self, run: Run) -> Iterator[None]:
        """A block in which what boxes answer, and rows of boxes elsewhere, are kept in a run's folder.

        All processes of the run come here together.
        """
        self._folder = group.journal_folder(run.path)
        self._within_reach = not group.any_of(group.rank() > 0 and self._folder == run.path)
        self.elsewhere += row_counts.read(self._folder, DATA)["rows"]
        self._code = run.code_versions()
        self.answers.attach(self._folder, group.rank(), self._code)
        self.answers.process_group = group.process_group()
        for rows, late in self._unwritten_elsewhere:
            self._note(rows, late)
        self._unwritten_elsewhere = []
        whole = False
        try:
            yield
            whole = self._within_reach
        finally:
            self.answers.process_group, self._folder = None, None
            for notes in self._notes.values():
                notes.end(whole)
            self._notes = {}

    def answers_of(self, stage: str, work: str = "test") -> KeptAnswers:
        """Return the boxes' answers in the test or "steps" of a stage, to be added to.

        They are those of this process's folder, in a block of `in_folder`.
        """
        assert self._folder is not None
        return KeptAnswers(f"{stage}.{work}", self._folder, group.rank(), self._code)

    @contextmanager
    def written(self, problem: Problem) -> Iterator[None]:
        """A block in which the rows of the problem's boxes are written down as they run, and bounded.

        Args:
            problem: Its boxes are wrapped from here on, see `bound`.
        """
        assert self._folder is not None
        boxes = list(problem.boxes.values())
        with calls_noted(self._folder, boxes, within_reach=self._within_reach, unwritten=self._unwritten):
            of_run = row_counts.read(self._folder)["rows"] - row_counts.read(self._folder, DATA)["rows"]
            # a box of the class serves every run of it: what it ran for others costs this one nothing
            self.bound(problem, others=max(0, RowTally(boxes).copy().rows_run - of_run))
            yield

    def bound(self, problem: Problem, others: int = 0) -> None:
        """Set a problem's boxes up: failed rows are kept, rows bounded, and processes share what all ask.

        Args:
            problem: Its boxes are wrapped.
            others: Rows that they have run in this process for other runs.

        Raises:
            ProblemError: The budget of rows does not go with the boxes, or with several processes.
        """
        rows, group_of_run = self._budget, group.process_group()
        boxes = problem.boxes.values()
        self.count_from_here(list(boxes))
        for box in boxes:
            box.failures = "keep"
        ledgers = {id(box.ledger) for box in boxes}
        if rows is not None and len(ledgers) > 1:
            raise ProblemError(
                f"rows: expected one black box, or several around one ledger, got {len(ledgers)}. Bound each "
                "by blackbox.Budgeted in box(self), and leave --rows out."
            )

        def bounded(box: BlackBoxFunction) -> bool:  # a box may see to it by itself
            return rows is None or any(
                isinstance(part, Budgeted) and part.rows <= rows - self.elsewhere for part in stack(box)
            )

        if rows is not None and group_of_run is not None and not all(map(bounded, boxes)):
            raise ProblemError(
                f"rows: expected a run in one process, which can keep to {rows:,} rows exactly, got several. "
                "Leave out --workers; or begin a run without --rows."
            )

        def wrapped(box: BlackBoxFunction) -> BlackBoxFunction:
            shared = group_of_run is None or any(
                isinstance(part, zo.execution.SharedRows) for part in stack(box)
            )
            shared |= isinstance(problem.box, BoxGroup)  # whose rows are of programs of this process
            if rows is not None and not bounded(box):
                box = Budgeted(box, max(0, others + rows - self.elsewhere))
                self._bounds.append(box)
            return box if shared else zo.execution.SharedRows(box, group_of_run)

        problem.replace_boxes(wrapped)

    def unbound(self, problem: Problem) -> None:
        """Take the run's own bound off a problem's boxes; what they are asked behind it is not the run's."""
        bound_ids = set(map(id, self._bounds))
        problem.replace_boxes(
            lambda box: box.box if isinstance(box, Budgeted) and id(box) in bound_ids else box
        )

    def count_from_here(self, boxes: Sequence[BlackBoxFunction]) -> None:
        """The run begins: what these boxes run from here on, or have run unwritten, is to make its data."""
        self._tally = RowTally(boxes)
        self._start = self._tally.copy()
        self._start.rows_run -= sum(self._unwritten.values())

    def rows_of_data(self) -> int:
        """Rows that were run to make the data, in all processes, which all ask here."""
        rows = self._tally.since(self._start).rows_run + self.answers.recalled.rows_run
        (rows_made,) = group.total(rows + (self.elsewhere if group.rank() == 0 else 0))  # all decide alike
        return rows_made

    @contextmanager
    def making(self, boxes: Callable[[], Sequence[BlackBoxFunction]]) -> Iterator[None]:
        """A block whose rows make data: they are counted, bounded, and their answers kept.

        Args:
            boxes: Gives the problem's boxes, those that it has made by then.
        """
        self._own_boxes = boxes
        with self.answers.used(self._before_rows, lambda box: not self._is_own(box)):
            yield
        self.answers.write()

    def _is_own(self, box: BlackBoxFunction) -> bool:
        return any(evaluated(one).ledger is box.ledger for one in self._own_boxes())

    def _before_rows(self, box: BlackBoxFunction, rows: int) -> None:
        """Other boxes' rows are about to be run: they are taken out of the budget, and watched."""
        if self._is_own(box):
            return
        bounds = {id(part): part for one in self._own_boxes() for part in stack(evaluated(one))}
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
            self._unwritten_elsewhere.append((rows, late))
        else:
            self._note(rows, late)

    def _note(self, rows: int, late: bool) -> None:
        if late not in self._notes:
            name = f"{DATA}{'-late' if late else ''}-{group.rank()}"
            assert self._folder is not None
            self._notes[late] = row_counts.Notes(self._folder, name, late or not self._within_reach)
        self._notes[late].add(rows, DATA)


@contextmanager
def calls_noted(
    folder: Path,
    boxes: Sequence[BlackBoxFunction],
    *,
    within_reach: bool = True,
    stage: str = "",
    unwritten: Mapping[int, int] | None = None,
) -> Iterator[None]:
    """A block in which the rows that boxes run are written down; nothing more, where they are already.

    A ledger begins with the rows of its own boxes that earlier processes of the run have written down, see
    `recall`. All processes of a run come here together.

    Args:
        folder: The run's folder; of several processes the first one's, where all can reach it.
        boxes: The run's boxes.
        within_reach: Whether all processes of the run can reach it.
        stage: The one stage that has these boxes; "" for the whole run.
        unwritten: Rows that were run before and have no note, by the id of the ledger that counted them.
    """
    ledgers = _labelled(boxes, stage)
    if any(ledger.watched for ledger in ledgers.values()):
        yield
        return
    recall(folder, boxes, stage)
    # rows of workers are counted when they are back, and so are those of a box that counts them itself
    late = any(map(counted_late, boxes))
    notes, whole = row_counts.Notes(folder, group.rank(), late or not within_reach), within_reach
    for label, ledger in ledgers.items():
        ledger.watch(partial(notes.add, label=label))
    try:
        for label, ledger in ledgers.items():
            if rows := (unwritten or {}).get(id(ledger), 0):
                notes.add(rows, label)
        yield
        notes.refuse_lost()
    except BaseException as error:  # what threads still run is counted when this does not listen any more
        whole = whole and isinstance(error, Interrupted)
        raise
    finally:
        for ledger in ledgers.values():
            ledger.watch(None)
        notes.end(whole)


def recall(folder: Path, boxes: Sequence[BlackBoxFunction], stage: str = "") -> None:
    """Add to ledgers, once each, the counts that earlier processes of the run have written down.

    So a budget bounds all rows of the run, also where a kill made it ask again. A wrapper whose class says
    `keeps_counts = True` keeps its counts by itself. For the arguments see `calls_noted`.
    """
    ledgers = _labelled(boxes, stage)
    if not ledgers or any(ledger.watched for ledger in ledgers.values()):
        return
    stacks = [stack(evaluated(box)) for box in boxes]
    keeping_ids = {
        id(parts[-1].ledger)
        for parts in stacks
        if any(getattr(part, "keeps_counts", False) for part in parts)
    }
    rows_before = group.total(
        *(row_counts.read(folder, label)["rows"] if group.rank() == 0 else 0 for label in ledgers)
    )
    for (label, ledger), rows in zip(ledgers.items(), rows_before, strict=True):
        ledger.add_once((folder.resolve(), label), Ledger(rows_run=0 if id(ledger) in keeping_ids else rows))


def _labelled(boxes: Sequence[BlackBoxFunction], stage: str = "") -> dict[str, Ledger]:
    """The boxes' ledgers, by what their notes are called: a box's budget bounds its own rows alone."""
    ledgers = {id(ledger): ledger for ledger in (evaluated(box).ledger for box in boxes)}.values()
    name = checkpoint.file_name(stage) if stage else ""
    return {name + (f"+{place}" if place else ""): ledger for place, ledger in enumerate(ledgers)}
