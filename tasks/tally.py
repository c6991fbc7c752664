"""What the boxes of a run count, together and over several processes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blackbox import BlackBoxFunction, Ledger
from blackbox.wrappers.wrapper import Wrapper
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

    def add(self, counts: Ledger) -> None:
        """Add what an earlier process counted, to the first box's ledger."""
        for ledger in self._ledgers[:1]:
            ledger.add(counts)


def evaluated(box: BlackBoxFunction) -> BlackBoxFunction:
    """The box whose ledger has what this process evaluates; the sum over processes is what one would."""
    return box.box if isinstance(box, SharedRows) else box


def recall(boxes: Sequence[BlackBoxFunction], *counts: Ledger) -> None:
    """Count what earlier processes of a run have run, for its budget of rows.

    A wrapper whose class says `remembers = True` keeps that by itself.
    """
    if boxes and not any(getattr(part, "remembers", False) for box in boxes for part in stack(box)):
        for spent in counts:
            evaluated(boxes[0]).ledger.add(spent)


def stack(box: BlackBoxFunction) -> list[BlackBoxFunction]:
    """The wrappers of a box from the outside in, and the box itself."""
    found = [box]
    while isinstance(found[-1], Wrapper):
        found.append(found[-1].box)
    return found
