"""`Ranks`: the processes that share out the variants of a step, what they exchange, and how they fail."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zo.batches import tensors
from zo.errors import ConfigurationError, TangentError
from zo.estimators.estimator import check_count
from zo.tangents.step.chunks import Layout, RecordedChunk

Own = TypeVar("Own")
Told = TypeVar("Told")


class Ranks:
    """The processes of a group, or this one alone.

    All call the same methods in the same order. In a step they exchange fingerprints, what was recorded,
    and how the rest of it went. What was recorded takes

        variants x rows x (1 + sum over calls of (size_in + size_out)) x itemsize

    bytes, the 1 for the loss and the variants rounded up to a multiple of ranks x chunk. Every rank receives
    them, and holds them twice for a moment. All else is half a kilobyte a rank, and 40 bytes for each call.

    Args:
        group: of `torch.distributed`; None for this process alone.
        chunk: how many variants run together; None for all, or one where there are several ranks.

    Attributes:
        rank, size: of this process in the group, and of the group.

    Raises:
        ConfigurationError: no group, or one that this process is not in; or a chunk below one.
    """

    def __init__(self, group: dist.ProcessGroup | None, chunk: int | None) -> None:
        if chunk is not None:
            check_count("TangentGradient", "chunk", chunk)
        # Before init_process_group, and outside of a group, torch gives other things than groups.
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise ConfigurationError(
                "TangentGradient, process_group: expected a torch.distributed group with this process in it, "
                f"got {group!r}. Take torch.distributed.group.WORLD after init_process_group(), or None."
            )
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
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
        if None not in (self._chunk, chunk) and self._chunk != chunk:
            raise ConfigurationError(
                f"TangentGradient: expected the state of a run with chunk={self._chunk}, got one with "
                f"{chunk}. Leave chunk out to go on with that one."
            )
        self._chunk = self._chunk if chunk is None else chunk

    def chunks(self, variants: int) -> list[range]:
        """The variants of a step, base included, that run together: the n-th chunk is of rank n % size."""
        each = variants if self.chunk is None else self.chunk
        return [range(start, min(start + each, variants)) for start in range(0, variants, each)]

    def together(self, step: int, work: Callable[[], tuple[Own, Told]]) -> tuple[Own, list[Told]]:
        """Work that each rank does on its own, and may fail at.

        Args:
            step: its number.
            work: gives what this rank keeps, and the little that it tells the others, by pickle.

        Returns:
            What it kept, and what each of the ranks told.

        Raises:
            TangentError: some rank failed; it has each one's reason. Where all did, each raises its own.
        """
        if self.size == 1:
            own, told = work()
            return own, [told]
        done, cause, reason = None, None, None
        try:
            done = work()
        except Exception as error:  # raised below, when all know of it
            cause, reason = error, f"{type(error).__name__}: {error}".rstrip(".")
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, (reason, None if done is None else done[1]), self.group)
        failed = [f"rank {rank} failed: {reason}" for rank, (reason, _) in enumerate(found) if reason]
        if cause is not None and len(failed) == self.size:
            raise cause
        if failed or done is None:
            raise TangentError(
                f"Step {step}: expected {self.size} ranks to do their part, {'; '.join(failed)}. Mend that "
                "and take the step again, on all ranks."
            ) from cause
        return done[0], [told for _, told in found]

    def refuse_others(self, step: int, fingerprint: Callable[[], dict[str, int]]) -> None:
        """Refuse ranks that are not about to take the same step as the first.

        Args:
            step: its number.
            fingerprint: see the function of that name; not called by a process alone.

        Raises:
            TangentError: there are some.
        """
        if self.size == 1:
            return
        _, found = self.together(step, lambda: (None, fingerprint()))
        other = {
            rank: [name for name, mark in own.items() if mark != found[0][name]]
            for rank, own in enumerate(found)
        }
        words = [f"other {' and '.join(names)} on rank {rank}" for rank, names in other.items() if names]
        if words:
            raise TangentError(
                f"Step {step}: expected all ranks to take the step of rank 0, got {', '.join(words)}. Give "
                "each the same settings, checkpoint and whole batches (no DistributedSampler), and the same "
                "torch.manual_seed."
            )

    def exchanged(
        self, own: Sequence[RecordedChunk], chunks: Sequence[range], layout: Layout, home: torch.device
    ) -> RecordedChunk:
        """The chunks of all ranks as one.

        Args:
            own: those of this rank, in their order.
            chunks: of all, as `chunks` gives them.
            layout: of all.
            home: the device of the network.
        """
        if self.size == 1:
            return RecordedChunk.joined(own)
        # Gloo has no all_gather for the memory of a GPU, NCCL none for any other.
        nccl = dist.get_backend(self.group) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        each, in_turn = len(chunks[0]), -(-len(chunks) // self.size)
        mine = torch.zeros(in_turn, each, sum(layout.sizes), dtype=torch.uint8, device=device)
        for place, chunk in zip(mine, own, strict=False):  # this rank may have one less than others
            place[: len(chunk.losses)] = chunk.packed().to(device)
        found = torch.empty(self.size, *mine.shape, dtype=torch.uint8, device=device)
        dist.all_gather(list(found), mine, self.group)
        dealt = found.transpose(0, 1).flatten(0, 2)[: chunks[-1].stop]
        return RecordedChunk.unpacked(dealt, layout, home)


def fingerprint(network: nn.Module, batch: Any, settings: str) -> dict[str, int]:  # noqa: ANN401
    """Checksums of what must be the same on all ranks, by name.

    32 bits each: others pass for the same once in 4e9 times. What tangents have learned is not looked at:
    ranks that differ in it differ in their weights a step later.

    Args:
        network: its weights and buffers; and the generator that its random layers draw from.
        batch: its tensors.
        settings: all else, in words.
    """
    weights = [*network.parameters(), *network.buffers()]
    used = {tensor.device for tensor in weights if tensor.is_cuda}
    generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in used)]
    return {
        "weights": _checksum(weights),
        "batch": _checksum(tensors(batch)),
        "random state": _checksum(generators),
        "settings": zlib.crc32(settings.encode()),
    }


def _checksum(several: Iterable[Tensor]) -> int:
    found = 0
    for tensor in several:
        found = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(values.numpy().data, found)
    return found
