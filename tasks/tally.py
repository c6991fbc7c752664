"""What the boxes of a run count, together and over several processes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from blackbox import BlackBoxFunction, Ledger, Parallel
from blackbox.wrappers.wrapper import Wrapper
from tasks.errors import Interrupted
from tasks.runs import calls, checkpoint
from tasks.workers import group
from zo import SharedRows


class Tally:
    """What several black boxes count together, as one ledger; boxes that share a ledger count once.

    Of boxes that several processes ask alike (`zo.SharedRows`) it is what this process evaluates itself.

    Args:
        boxes: The boxes.
        *recalled: What earlier processes have counted for answers of theirs that are used.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction], *recalled: Ledger) -> None:
        ledgers = [*(evaluated(box).ledger for box in boxes), *recalled]
        self._ledgers = list({id(ledger): ledger for ledger in ledgers}.values())

    def counts(self, box: BlackBoxFunction) -> bool:
        """Whether a box's ledger is one of these."""
        return any(evaluated(box).ledger is ledger for ledger in self._ledgers)

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
    folder: Path, boxes: Sequence[BlackBoxFunction], *, within_reach: bool = True, stage: str = ""
) -> Iterator[None]:
    """A block in which the rows that boxes run are written down; nothing more, where they are already.

    A ledger begins with the rows of its own boxes that earlier processes of the run have written down, see
    `recall`. All processes of a run come here together.

    Args:
        folder: Of the run; of several processes the first one's, where all can reach it.
        boxes: Of the run.
        within_reach: Whether all processes of the run can reach it.
        stage: That alone has these boxes; "" for the whole run.
    """
    ledgers = _labelled(boxes, stage)
    if any(ledger.watched for ledger in ledgers.values()):
        yield
        return
    recall(folder, boxes, stage)
    # rows of workers are counted when they are back, and so are those of a box that counts them itself
    late = any(map(counted_late, boxes))
    notes, whole = calls.Notes(folder, group.rank(), late or not within_reach), within_reach
    for label, ledger in ledgers.items():
        ledger.watch(partial(notes.add, label=label))
    try:
        for label, ledger in ledgers.items():
            if asked := vars(ledger).pop(_UNNOTED, 0):
                notes.add(asked, label)
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
    """Add to ledgers, once each, what earlier processes of the run have written down of their boxes.

    So a budget bounds what the run asks for in all, also where a kill made it ask again. A wrapper whose
    class says `remembers = True` keeps that by itself. Arguments are those of `calls_noted`.
    """
    ledgers = _labelled(boxes, stage)
    if not ledgers or any(ledger.watched for ledger in ledgers.values()):
        return
    stacks = [stack(evaluated(box)) for box in boxes]
    kept = {
        id(parts[-1].ledger) for parts in stacks if any(getattr(each, "remembers", False) for each in parts)
    }
    before = group.total(
        *(calls.read(folder, label)["rows"] if group.rank() == 0 else 0 for label in ledgers)
    )
    for (label, ledger), rows in zip(ledgers.items(), before, strict=True):
        recalled = vars(ledger).setdefault(_RECALLED, set())
        place = folder.resolve(), label
        if place not in recalled and id(ledger) not in kept:
            ledger.add(Ledger(rows_run=rows))
        recalled.add(place)


@contextmanager
def noted_later(boxes: Callable[[], Sequence[BlackBoxFunction]]) -> Iterator[None]:
    """A block before there is a folder: the next block of `calls_noted` writes down the rows that it runs.

    Args:
        boxes: Gives those that have been made; asked before and after.
    """
    before = {id(ledger): ledger.rows_run for ledger in _labelled(boxes()).values()}
    yield
    for ledger in _labelled(boxes()).values():
        more = ledger.rows_run - before.get(id(ledger), 0)
        vars(ledger)[_UNNOTED] = vars(ledger).get(_UNNOTED, 0) + more


def unnoted(boxes: Sequence[BlackBoxFunction]) -> int:
    """Rows that `noted_later` has left to be written down."""
    return sum(vars(ledger).get(_UNNOTED, 0) for ledger in _labelled(boxes).values())


# of a ledger, and no fields: they are no counts
_RECALLED = "_recalled"  # folders and labels whose earlier rows it has
_UNNOTED = "_unnoted"  # rows that no note has yet


def _labelled(boxes: Sequence[BlackBoxFunction], stage: str = "") -> dict[str, Ledger]:
    """The boxes' ledgers, by what their notes are called: a box's budget bounds its own rows alone."""
    ledgers = {id(ledger): ledger for ledger in (evaluated(box).ledger for box in boxes)}.values()
    name = checkpoint.file_name(stage) if stage else ""
    return {name + (f"+{place}" if place else ""): ledger for place, ledger in enumerate(ledgers)}


def evaluated(box: BlackBoxFunction) -> BlackBoxFunction:
    """The box whose ledger has what this process evaluates; the sum over processes is what one would."""
    return box.box if isinstance(box, SharedRows) else box


def counted_late(box: BlackBoxFunction) -> bool:
    """Whether a box's rows are counted when they are back, by workers or by itself, not before they run."""
    parts = stack(evaluated(box))
    itself = type(parts[-1]).run_rows is not BlackBoxFunction.run_rows
    return itself or any(isinstance(part, Parallel) for part in parts)


def stack(box: BlackBoxFunction) -> list[BlackBoxFunction]:
    """The wrappers of a box from the outside in, and the box itself."""
    found = [box]
    while isinstance(found[-1], Wrapper):
        found.append(found[-1].box)
    return found
