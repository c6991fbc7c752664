"""`Sharing`: the queries of a step, shared out over the ranks of a group, to the bits of one process."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from zo.distributed.apart import apart
from zo.distributed.exchange import Report, tell_known, tell_round
from zo.distributed.queries import StepQueries
from zo.distributed.ranks import Ranks
from zo.distributed.row_blocks import parts_of_first
from zo.distributed.shares import Composition, Costs, compositions, dealt
from zo.journal import Found

ROUND = 10.0  # seconds between exchanges of a step with a journal, about: what a kill may lose


@dataclass(frozen=True)
class Opening:
    """What a rank says of a step before its queries; of ranks that are alike only the first one's counts.

    Attributes:
        alive: a checksum of which rows of the base survived.
        loss: the mean of the base over these.
        chunk: queries that run together.
        known: numbers of the pieces that are in its journal.
        spent: queries of checks that these have cost.
        state: a checksum of the evaluator's state and the costs.
        checks: whether a first piece will probably be checked, or measured.
        journaled: whether it keeps a journal.
    """

    alive: int
    loss: float
    chunk: int | None
    known: tuple[int, ...]
    spent: int
    state: int
    checks: bool
    journaled: bool


class Sharing:
    """Shares the queries of each step out over ranks.

    What is dealt out are pieces: a chunk of queries, on all rows of the batch or on a block of them. A piece
    comes to the same bits wherever it is evaluated and whatever was evaluated before, as long as the
    evaluator is in the same state. Checks and choices change it, nearly always at the first piece of a first
    step, which rank 0 therefore evaluates while the others wait. Where some later piece changes it on some
    rank, the first such piece in the order of one process counts: all take the state that it led to, and what
    they had evaluated of later pieces they evaluate again.

    A round of pieces ends in one exchange, of how it went and of the differences. Bytes that each rank
    receives in a step: 8 a query and block of rows, for its difference, in which NaN stands for a dropped
    one; and some hundred for each rank, for the fingerprint and how it went. In the first three steps also
    the evaluator's state and the layers' costs.

    Args:
        ranks: of the group.
        first_alone: whether rank 0 evaluates all pieces, and the others wait for what they come to.

    Attributes:
        costs: of the layers.
    """

    def __init__(self, ranks: Ranks, *, first_alone: bool = False) -> None:
        self.costs = Costs()
        self._ranks = ranks
        self._first_alone = first_alone
        self._first = True

    def opening(
        self, queries: StepQueries, alive: int, loss: float, known: Mapping[int, Found], spent: int
    ) -> Opening:
        """What this rank says of a step."""
        state = queries.evaluator.state_dict()
        mark = zlib.crc32(f"{state} {self.costs.state_dict()}".encode())
        checks = self._first and bool(state)
        journaled = queries.page is not None
        return Opening(alive, loss, queries.chunk, tuple(known), spent, mark, checks, journaled)

    def all(
        self, step: int, queries: StepQueries, known: Mapping[int, Found], told: Sequence[Opening]
    ) -> tuple[Found, int]:
        """What all queries come to, the same on every rank; and queries that were spent beside them.

        Args:
            step: its number.
            queries: of the step, alike on all ranks but for the journal, which is rank 0's.
            known: pieces that were found there; empty on other ranks.
            told: by all ranks, in their order.

        Raises:
            RanksError: a rank failed or died.
        """
        ranks, first = self._ranks, told[0]
        self._agree(step, queries, told)
        composed = _composed(queries)
        result = torch.full((queries.values,), torch.nan, dtype=torch.float64)
        tell_known(ranks, step, queries, first.known, known, result)
        pending = [number for number in range(queries.pieces) if number not in set(first.known)]
        measured: list[tuple[Composition, float]] = []
        spent, alone = first.spent, first.checks
        following = ranks.size if first.journaled else len(pending)
        while pending:
            now = pending[:1] if alone else pending[:following]
            if alone or self._first_alone:
                shares = [now, *([] for _ in range(ranks.size - 1))]
            else:
                shares = dealt(now, composed, self.costs, ranks.size)
            before = queries.evaluator.state_dict()
            reports, found = self._round(step, queries, shares, None if alone else (composed, measured))
            changed = min((each.changed for each in reports if each.changed is not None), default=None)
            last = now[-1] if changed is None else changed
            checks = 0
            for share, report in zip(shares, reports, strict=True):
                again = [queries.bounds(number) for number in share[: report.done] if number > last]
                checks += report.checks + sum(stop - start for start, stop in again)
            spent += checks
            kept = {number: values for number, values in found.items() if number <= last}
            for number, values in kept.items():
                start, stop = queries.bounds(number)
                result[start:stop] = values
            if first.journaled:
                _, spent_by = ranks.together(step, lambda: (None, queries.spent()))
                others = [counts for counts in spent_by if counts is not None]
                states = {number: before for number in kept if changed is not None and number < changed}
                keep = partial(self._keep, queries, sorted(kept), result, checks, others, states)
                ranks.together(step, keep)
            pending = [number for number in pending if number not in kept]
            if first.journaled and not alone:
                following = reports[0].following
            alone = False
        if ranks.rank == 0 and not self.costs.known:
            self.costs.learn(measured)
        self._first = False
        return queries.summed((result.nan_to_num(0.0), ~result.isnan())), spent

    def resumed(self) -> None:
        """The evaluator's state is another now: it may be checked again."""
        self._first = True

    def _agree(self, step: int, queries: StepQueries, told: Sequence[Opening]) -> None:
        """Take the evaluator's state and the costs of rank 0, if some rank has others."""
        if all(other.state == told[0].state for other in told):
            return
        own = queries.evaluator.state_dict(), self.costs.state_dict()
        given = own if self._ranks.rank == 0 else ({}, {})
        _, found = self._ranks.together(step, lambda: (None, given))
        queries.evaluator.load_state_dict(found[0][0])
        self.costs.load_state_dict(found[0][1])

    def _round(
        self,
        step: int,
        queries: StepQueries,
        shares: Sequence[Sequence[int]],
        notes: tuple[Sequence[Composition], list[tuple[Composition, float]]] | None,
    ) -> tuple[list[Report], dict[int, Tensor]]:
        """How all ranks' shares of a round went, and the pieces' values; notes get the times of one's own.

        If the evaluator's state changed on some rank, all take the one that the first such piece led to.
        """
        ranks = self._ranks
        error: Exception | None = None
        own: dict[int, Found] = {}
        report = Report(0, 0, None, 0)
        try:
            with apart():  # boxes that all ask alike are now asked by each for itself
                own, report = self._work(queries, shares[ranks.rank], notes)
        except Exception as raised:  # raised below, when all know of it
            error = raised
        reports, found, failed = tell_round(ranks, step, queries, shares, own, report, error is not None)
        if failed:
            ranks.together(step, partial(_raise, error))
        changed = [each.changed for each in reports if each.changed is not None]
        if changed:
            mine = queries.evaluator.state_dict() if report.changed == min(changed) else None
            _, states = ranks.together(step, lambda: (None, mine))
            queries.evaluator.load_state_dict(next(state for state in states if state is not None))
        return reports, found

    def _work(
        self,
        queries: StepQueries,
        share: Sequence[int],
        notes: tuple[Sequence[Composition], list[tuple[Composition, float]]] | None,
    ) -> tuple[dict[int, Found], Report]:
        """Evaluate the pieces of a share, until one changes the evaluator's state."""
        own: dict[int, Found] = {}
        before, began = queries.evaluator.state_dict(), perf_counter()
        checks = 0
        for number in share:
            start = perf_counter()
            own[number] = queries.evaluated(number)
            if notes is not None:
                notes[1].append((notes[0][number], perf_counter() - start))
            checks += queries.evaluator.take_queries()
            if queries.evaluator.state_dict() != before:
                return own, Report(len(own), checks, number, 1)
        size = 1 if self._first_alone else self._ranks.size
        wanted = ROUND / max(perf_counter() - began, 1e-3) * max(1, len(share)) * size
        # never much more than was just seen: the next pieces may be dearer
        following = int(min(wanted, 4 * size * max(1, len(share))))
        return own, Report(len(own), checks, None, max(size, following))

    def _keep(
        self,
        queries: StepQueries,
        kept: Sequence[int],
        result: Tensor,
        checks: int,
        others: Sequence[Any],
        states: Mapping[int, Mapping[str, Any]],
    ) -> tuple[None, None]:
        """Put the pieces of a round, those of other ranks too, in the journal of the rank that has one.

        With each goes the state that the evaluator was in after it, as one process would have it; with the
        first what checks cost, and what was counted on all ranks.
        """
        if queries.page is None:
            return None, None
        for number in kept:
            start, stop = queries.bounds(number)
            part = result[start:stop]
            found = part.nan_to_num(0.0), ~part.isnan()
            queries.page.keep(start, stop, found, checks, others, states.get(number))
            queries.page.known(start, stop)  # from here on the rows of the next entry count
            checks, others = 0, ()
        return None, None


def _raise(error: Exception | None) -> tuple[None, None]:
    if error is not None:
        raise error
    return None, None


def _composed(queries: StepQueries) -> list[Composition]:
    """What each piece is composed of; a query on a short block counts as the part of one that it is."""
    blocks = queries.blocks
    chunks = compositions(queries.plan, blocks[0].problem.parameters, queries.chunk)
    return [
        {layer: count * part for layer, count in chunk.items()}
        for part in parts_of_first(blocks)
        for chunk in chunks
    ]
