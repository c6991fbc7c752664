"""`ProbeRanks`: the processes that share out the variants of a step, and what they exchange of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from blackbox.checks import check_count
from zo.errors import TangentError
from zo.execution.ranks import Ranks
from zo.same_run import same_chunk
from zo.tangents.step.chunks import Layout, RecordedChunk


class ProbeRanks(Ranks):
    """The processes of a group, or this one alone.

    In a step they exchange fingerprints, what was recorded, and how the rest of it went. What was recorded
    takes

        variants x rows x (1 + sum over calls of (size_in + size_out)) x itemsize

    bytes, the 1 for the loss and the variants rounded up to a multiple of ranks x chunk. Every rank receives
    them, and holds them twice for a moment. All else is half a kilobyte a rank, and 40 bytes for each call.

    Args:
        group: of `torch.distributed`; None for this process alone.
        chunk: how many variants run together; None for all, or one where there are several ranks.

    Raises:
        ConfigurationError: no group, or one that this process is not in; or a chunk below one.
    """

    def __init__(self, group: dist.ProcessGroup | None, chunk: int | None) -> None:
        if chunk is not None:
            check_count("TangentGradient", "chunk", chunk)
        super().__init__(group, "TangentGradient", TangentError)
        self._chunk = chunk

    @property
    def chunk(self) -> int | None:
        """How many variants run together; None for all."""
        return 1 if self._chunk is None and self.size > 1 else self._chunk

    def take_chunk(self, chunk: int | None) -> None:
        """Go on with the chunk of a resumed run; None, all of them, says nothing to several processes.

        Raises:
            ConfigurationError: this one was given another.
        """
        self._chunk = same_chunk("TangentGradient", self._chunk, chunk)

    def chunks(self, variants: int) -> list[range]:
        """The variants of a step, base included, that run together: the n-th chunk is of rank n % size."""
        each = variants if self.chunk is None else self.chunk
        return [range(start, min(start + each, variants)) for start in range(0, variants, each)]

    def recorded(
        self,
        step: int,
        own: Sequence[RecordedChunk],
        chunks: Sequence[range],
        layout: Layout,
        home: torch.device,
    ) -> RecordedChunk:
        """The chunks of all ranks as one.

        Args:
            step: its number.
            own: those of this rank, in their order.
            chunks: of all, as `chunks` gives them.
            layout: of all.
            home: the device of the network.

        Raises:
            TangentError: a rank died.
        """
        if self.size == 1:
            return RecordedChunk.joined(own)
        each, in_turn = len(chunks[0]), -(-len(chunks) // self.size)
        mine = torch.zeros(in_turn, each, sum(layout.sizes), dtype=torch.uint8, device=self.device)
        for place, chunk in zip(mine, own, strict=False):  # this rank may have one less than others
            place[: len(chunk.losses)] = chunk.packed().to(self.device)
        found = torch.empty(self.size, *mine.shape, dtype=torch.uint8, device=self.device)
        with self.answering(step):
            dist.all_gather(list(found), mine, self.group)
            dealt = found.transpose(0, 1).flatten(0, 2)[: chunks[-1].stop]
        self.exchanged += found.numel()
        return RecordedChunk.unpacked(dealt, layout, home)
