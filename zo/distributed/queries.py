"""`StepQueries`: the queries of one step, piece after piece; and how one process evaluates them all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from zo.distributed.row_blocks import RowBlock
from zo.evaluators.evaluator import Evaluator, mean_changes
from zo.journal import Found, Journal, Page
from zo.perturbation import Perturbations


@dataclass(frozen=True)
class StepQueries:
    """The queries of one step, in pieces: chunks of queries, of which each evaluates a block of rows.

    Their boundaries hang on the sizes of chunks and blocks alone. Mostly there is one block, of all rows;
    else the pieces of the first block come first. Values are numbered likewise: those of query q on block b
    have number b x queries + q.

    Attributes:
        blocks: of the batch's rows.
        plan: of the step.
        chunk: queries that run together.
        evaluator: of all of them.
        page: of the journal; None for none.
        journal: of a process that keeps nothing in it, but tells what it counts.
    """

    blocks: tuple[RowBlock, ...]
    plan: Perturbations
    chunk: int
    evaluator: Evaluator
    page: Page | None
    journal: Journal | None = None

    @property
    def chunks(self) -> int:
        """How many chunks the queries are cut into."""
        return -(-self.plan.queries // self.chunk)

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return self.chunks * len(self.blocks)

    @property
    def values(self) -> int:
        """How many values they come to."""
        return self.plan.queries * len(self.blocks)

    def bounds(self, number: int) -> tuple[int, int]:
        """First value of a piece, and the one after its last."""
        start, stop = self._queries(number)
        before = number // self.chunks * self.plan.queries
        return before + start, before + stop

    def evaluated(self, number: int) -> Found:
        """What a piece comes to: the mean change of each query over the block's rows, weighted by them."""
        block = self.blocks[number // self.chunks]
        start, stop = self._queries(number)
        if not block.survivors:
            return torch.zeros(stop - start, dtype=torch.float64), torch.ones(stop - start, dtype=torch.bool)
        changes = self.evaluator.changes(block.problem, self.plan.chunk(start, stop), block.base)
        difference, valid = mean_changes(block.base, changes)
        return difference * block.weight, valid

    def all(self) -> tuple[Found, int]:
        """What all queries come to, by this process; and queries that checks have cost beside them."""
        page, parts = self.page, []
        for number in range(self.pieces):
            work = partial(self.evaluated, number)
            parts.append(work() if page is None else page.chunk(*self.bounds(number), work))
        difference, valid = (torch.cat(column) for column in zip(*parts, strict=True))
        checks = self.evaluator.take_queries() if page is None else page.queries
        return self.summed((difference, valid)), checks

    def summed(self, found: Found) -> Found:
        """Differences of the queries, `(queries,)`, from those of all blocks, in the blocks' order."""
        difference, valid = (part.view(len(self.blocks), -1) for part in found)
        total = difference[0]
        for part in difference[1:]:  # one by one: how a sum over an axis is ordered is torch's own affair
            total = total + part
        valid = valid.all(dim=0)
        return torch.where(valid, total, 0.0), valid

    def known(self) -> dict[int, Found]:
        """The pieces that an earlier process has left in the journal."""
        if self.page is None:
            return {}
        found = {number: self.page.known(*self.bounds(number)) for number in range(self.pieces)}
        return {number: own for number, own in found.items() if own is not None}

    def spent(self) -> Any:  # noqa: ANN401
        """What this process counted for another one's journal; None for its own."""
        return None if self.journal is None else self.journal.spent()

    def _queries(self, number: int) -> tuple[int, int]:
        start = number % self.chunks * self.chunk
        return start, min(start + self.chunk, self.plan.queries)
