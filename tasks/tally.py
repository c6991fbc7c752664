"""What the boxes of a run count, together and over several processes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blackbox import BlackBoxFunction, Ledger, Parallel
from blackbox.wrappers.wrapper import Wrapper
from tasks.errors import Interrupted
from tasks.runs import calls
from tasks.workers import group
from zo import SharedRows


class Tally:
    """What several black boxes count together, as one ledger; boxes that share a ledger count once.

    Of boxes that several processes ask alike (`zo.SharedRows`) it is what this process evaluates itself.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction]) -> None:
        ledgers = [evaluated(box).ledger for box in boxes]
        self._ledgers = list({id(ledger): ledger for ledger in ledgers}.values())

    def copy(self) -> Ledger:
        """The counts as they stand now."""
        found = Ledger()
        for ledger in self._ledgers:
            found.add(ledger)
        return found

    def since(self, before: Ledger) -> Ledger:
        """What was counted after `before`."""
        return self.copy().since(before)

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """A block in which the first row that fails is noted, whatever failed before it."""
        firsts = [ledger.first_failure for ledger in self._ledgers]
        for ledger in self._ledgers:
            ledger.first_failure = None
        try:
            yield
        finally:
            for ledger, first in zip(self._ledgers, firsts, strict=True):
                ledger.first_failure = first or ledger.first_failure


@contextmanager
def calls_noted(
    folder: Path, boxes: Sequence[BlackBoxFunction], *, within_reach: bool = True
) -> Iterator[None]:
    """A block in which the rows that boxes run are written down; nothing more, where they are already.

    The boxes' ledger begins with the rows that earlier processes of the run have written down, so that a
    budget bounds what the run asks for in all, also where a kill made it ask again. All processes of a run
    come here together.

    Args:
        folder: Of the run; of several processes the first one's, where all can reach it.
        boxes: Of the run.
        within_reach: Whether all processes of the run can reach it.
    """
    stacks = [stack(evaluated(box)) for box in boxes]
    ledgers = {id(parts[-1].ledger): parts[-1].ledger for parts in stacks}.values()
    if any(ledger.watched for ledger in ledgers):
        yield
        return
    (before,) = group.total(calls.read(folder)["rows"] if group.rank() == 0 else 0)
    for ledger in list(ledgers)[:1]:
        ledger.add(Ledger(rows_run=max(0, before - sum(each.rows_run for each in ledgers))))
    # rows of workers are counted when they are back, and so are those of a box that counts them itself
    late = any(
        type(parts[-1]).run_rows is not BlackBoxFunction.run_rows
        or any(isinstance(part, Parallel) for part in parts)
        for parts in stacks
    )
    note = calls.Note(folder / calls.FOLDER, late or not within_reach, within_reach)
    for ledger in ledgers:
        ledger.watch(note.count)
    try:
        yield
    except BaseException as error:  # what threads still run is counted when this does not listen any more
        note.ends &= not late or isinstance(error, Interrupted)
        raise
    finally:
        for ledger in ledgers:
            ledger.watch(None)
        note.end()


def evaluated(box: BlackBoxFunction) -> BlackBoxFunction:
    """The box whose ledger has what this process evaluates; the sum over processes is what one would."""
    return box.box if isinstance(box, SharedRows) else box


def stack(box: BlackBoxFunction) -> list[BlackBoxFunction]:
    """The wrappers of a box from the outside in, and the box itself."""
    found = [box]
    while isinstance(found[-1], Wrapper):
        found.append(found[-1].box)
    return found
