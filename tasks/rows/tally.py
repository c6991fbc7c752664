"""The counts of several boxes, as one ledger; and over all processes of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from blackbox import BlackBoxFunction, Ledger
from tasks.rows.stacks import evaluated
from tasks.workers import group


class RowTally:
    """The counts of several black boxes, as one ledger; boxes that share a ledger count once.

    For boxes that several processes ask the same (`SharedRows`) it counts the rows that this process
    evaluates itself.

    Args:
        boxes: The boxes.
        *recalled: The counts of earlier processes for answers of theirs that are used.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction], *recalled: Ledger) -> None:
        ledgers = [*(evaluated(box).ledger for box in boxes), *recalled]
        self._ledgers = list({id(ledger): ledger for ledger in ledgers}.values())

    def counts(self, box: BlackBoxFunction) -> bool:
        """Say whether a box's ledger is one of these."""
        return any(evaluated(box).ledger is ledger for ledger in self._ledgers)

    def copy(self) -> Ledger:
        """The counts as they stand now."""
        counts = Ledger()
        for ledger in self._ledgers:
            counts.add(ledger)
        return counts

    def since(self, before: Ledger) -> Ledger:
        """Return the counts after `before`."""
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


def everywhere(spent: Ledger) -> Ledger:
    """Add up the counts of all processes of the run, which all ask here; the first failure is any one's."""
    counts = {name: value for name, value in vars(spent).items() if isinstance(value, int)}
    summed = dict(zip(counts, group.total(*counts.values()), strict=True))
    if not group.any_of(bool(spent.causes) or spent.first_failure is not None):
        return replace(spent, **summed)
    causes: Counter[str] = Counter()
    firsts = []
    for of_process, first in group.of_all((spent.causes, spent.first_failure)):
        causes.update(of_process)
        firsts.append(first)
    first = next((text for text in firsts if text is not None), None)
    return replace(spent, **summed, causes=dict(causes), first_failure=first)


def count_alike(box: BlackBoxFunction, **counts: int) -> None:
    """Count in a box's ledger what every process of the run does alike: in that of the first one alone."""
    if group.rank() == 0:
        evaluated(box).ledger.count(calls=1, **counts)
