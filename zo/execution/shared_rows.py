"""`SharedRows`: a black box that several processes call with the same rows, each evaluated once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from blackbox import BlackBoxFunction, Wrapper
from blackbox.arrays import failed_outputs, to_rows
from blackbox.checks import check_count
from blackbox.failures import Outcome
from blackbox.running import mark_non_finite
from zo.errors import RanksError
from zo.execution.ranks import Ranks, checksum, is_sendable

_apart = ContextVar("apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """A block in which processes evaluate different queries, so that no box may wait for the others."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


class SharedRows(Wrapper):
    """Calls a box once for all processes of a group, and gives all of them the answers.

        box = zo.execution.SharedRows(service, torch.distributed.group.WORLD)

    Processes that train the same network in step make the same calls: the base, validation, the queries of
    `differentiable`, the steps of a `TangentGradient`. Without this wrapper each would pay for them. If a
    `LossGradient` shares its queries (`process_group`), each process evaluates its own, as if the wrapper
    were not there.

    The answers equal a single process's, to the bit. Without a block, the first process evaluates every
    call whole, as a box with a budget, with noise, or whose rows go on from one another needs. With one,
    calls are cut into blocks of that many rows, even with a single process, and block n goes to process
    n % size; for equal blocks the answers are equal to the bit.

    A call takes 24 bytes from each process, for a checksum of its inputs, and the answers of the others.

    Args:
        box: the box with all its wrappers. Its ledger counts what this process evaluates, so the sum over the
            processes is what a single process would have evaluated. `ledger` counts what this process
            requested together with the others, all of it as run, also rows that a `Cached` inside answers; of
            queries that processes share, which are not as many in each, only the ledger inside knows.
        process_group: the group whose processes all make the same calls; None for this process alone.
        block: rows that a process evaluates at a time; None if the first process evaluates all.

    Attributes:
        exchanged: bytes received from all processes so far.

    Raises:
        ConfigurationError: `box` is not a black box, the group does not have this process, or a block is
            below one.
        RanksError: from a call: a process makes another call, or died, or made none until the timeout of
            the group, as one that failed between two calls. An error of the box in one process is raised
            in all.
    """

    transparent = True

    def __init__(
        self, box: BlackBoxFunction, process_group: dist.ProcessGroup | None, block: int | None = None
    ) -> None:
        super().__init__(box)
        if block is not None:
            check_count("SharedRows", "block", block)
        self.block = block
        self._ranks = Ranks(process_group, "SharedRows", RanksError, "Call")
        self._calls = 0

    @property
    def ledger(self):  # noqa: ANN201 - the parent's kind
        """The ledger of this process's requests; see `box.ledger` for the rows that it evaluated."""
        return self._ledger

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The group; None for this process alone."""
        return self._ranks.group

    @property
    def exchanged(self) -> int:
        """The bytes received from all processes so far."""
        return self._ranks.exchanged

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Evaluate this process's blocks; receive those of the others."""
        rows = len(inputs[0])
        per_block = self.block or max(rows, 1)
        blocks = [range(start, min(start + per_block, rows)) for start in range(0, rows, per_block)]
        dtype = to_rows(repr(self), self.inputs, inputs).dtype
        outputs = failed_outputs(self.outputs, inputs, dtype)
        ranks = self._ranks
        shared = ranks.size > 1 and not _apart.get()
        if shared or ranks.size == 1:  # in which a budget around it bounds what all request, alike in all
            self.ledger.spend(rows)
        error: Exception | None = None
        for block in blocks[ranks.rank :: ranks.size] if shared else blocks:
            try:
                self._answer(inputs, block, outputs)
            except Exception as raised:  # all must know before it is raised
                if not shared:
                    raise
                error = raised
                break
        if shared:
            with _disable_current_modes():  # what is exchanged is no part of what an evaluation takes
                self._exchange(inputs, blocks, outputs, error)
        outcome = Outcome(outputs)
        mark_non_finite(outcome)
        return outcome

    def _answer(self, inputs: tuple[Tensor, ...], block: range, outputs: Sequence[Tensor]) -> None:
        """Put the answers to a block in its rows.

        Nothing of one block is left while the next is evaluated: the peak that chunks are chosen by must not
        depend on how many blocks are this process's.
        """
        answers = self.box(*(tensor[block.start : block.stop] for tensor in inputs))
        for whole, part in zip(outputs, answers if isinstance(answers, tuple) else (answers,), strict=True):
            whole[block.start : block.stop] = part

    def _exchange(
        self,
        inputs: Sequence[Tensor],
        blocks: Sequence[range],
        outputs: Sequence[Tensor],
        error: Exception | None,
    ) -> None:
        """Agree on what was asked; raise what some process raised; fill in the rows of the others."""
        ranks, self._calls = self._ranks, self._calls + 1
        head = torch.tensor([self._calls, checksum(inputs), error is not None])
        heads = ranks.all_of(self._calls - 1, head, [len(head)] * ranks.size).view(ranks.size, -1)
        other_ranks = [f"rank {rank}" for rank, sent in enumerate(heads) if (sent[:2] != heads[0, :2]).any()]
        if other_ranks:
            raise RanksError(
                f"{self!r}, call {self._calls}: expected all ranks to ask for the same rows, got others on "
                f"{', '.join(other_ranks)}. Give each the same settings, checkpoint and batches; what only "
                "some need is asked of the box inside."
            )
        if heads[:, 2].any():
            self._raise(error)
        shares = [blocks[rank :: ranks.size] for rank in range(ranks.size)]
        sizes = [sum(len(block) for block in share) for share in shares]
        for whole in outputs:
            width = whole[:1].numel() * whole.element_size()
            parts = [whole[block.start : block.stop].cpu() for block in shares[ranks.rank]]
            packed = torch.cat(
                [part.flatten().view(torch.uint8) for part in parts] or [head.new_empty(0).byte()]
            )
            received = ranks.all_of(self._calls - 1, packed, [size * width for size in sizes])
            at = 0
            for block in (block for share in shares for block in share):
                values = received[at : at + len(block) * width].clone().view(whole.dtype)
                whole[block.start : block.stop] = values.view(len(block), *whole.shape[1:])
                at += len(block) * width

    def _raise(self, error: Exception | None) -> None:
        """Raise the first process's error that there is: of the same kind in all, where it can be sent."""
        with self._ranks.meeting(self._calls - 1) as meeting:
            if error is not None:
                meeting.message = f"{type(error).__name__}: {error}", error if is_sendable(error) else None
        if error is not None:
            raise error
        rank, (words, original) = next((rank, pair) for rank, pair in enumerate(meeting.messages) if pair)
        if original is not None:
            raise original
        raise RanksError(f"{self!r}: expected an answer of rank {rank}, which failed: {words}")

    def __repr__(self) -> str:
        """The repr of the box: on any number of processes the answers are the box's."""
        return repr(self.box)
