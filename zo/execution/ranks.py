"""`Ranks`: processes that take a step together, the messages that they exchange, and their failures."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from types import EllipsisType
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blackbox.errors import BlackBoxError
from blackbox.notices import Notice
from zo.batches import Batch, bits, tensors
from zo.errors import ConfigurationError, FailedBatchError, FailedQueriesError, RanksWarning

T = TypeVar("T")

Group: TypeAlias = dist.ProcessGroup | EllipsisType | None
"""A group of `torch.distributed`; None for a process alone, and `...` where nobody has said which of them."""


class Meeting:
    """The messages that the ranks exchange at the end of a block.

    Attributes:
        message: the message of this rank, small, sent by pickle; to be set in the block.
        marks: checksums that must be the same on all ranks, by name, see `fingerprint`; to be set in the
            block.
        messages: the messages of all ranks, in their order; set at the end of the block.
    """

    def __init__(self) -> None:
        self.message: Any = None
        self.marks: Mapping[str, int | str] = {}
        self.messages: list[Any] = []


@dataclass
class _Answer:
    """The message of a rank to the others.

    Attributes:
        message, marks: see `Meeting`.
        reason: why it failed, in words; None if it did not.
        batch: the error to be raised on all ranks, if rows of a black box failed.
        other: whether it failed in another way than by rows.
    """

    message: Any
    marks: Mapping[str, int | str]
    reason: str | None = None
    batch: FailedBatchError | None = None
    other: bool = False


class Ranks:
    """The processes of a group, or this one alone.

    All call the same methods in the same order.

    Args:
        group: a group of `torch.distributed`; None or `...` for this process alone.
        owner: the class of the gradient, for messages.
        error: the class of the error where the ranks cannot take a step together.
        unit: what the numbers of steps are called in messages.

    Attributes:
        rank, size: this process's number in the group, and the group's size.
        exchanged: bytes that came from all ranks, this one included, since it was set to zero; the overhead
            of NCCL, gloo and TCP is not counted.
        waited: seconds of waiting for these bytes, since this was made.

    Raises:
        ConfigurationError: no group, or one that this process is not in.
    """

    exchanges: ClassVar[int] = 0  # of all groups of this process, so far

    def __init__(self, group: Group, owner: str, error: type[BlackBoxError], unit: str = "Step") -> None:
        group = None if group is ... else group
        # Before init_process_group, and outside of a group, torch gives other things than groups.
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise ConfigurationError(
                f"{owner}, process_group: expected a torch.distributed group with this process in it, "
                f"got {group!r}. Take torch.distributed.group.WORLD after init_process_group(), or None."
            )
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.exchanged, self.waited = 0, 0.0
        self._error, self._unit = error, unit
        self._raised: Exception | None = None  # the last error of a meeting

    @contextmanager
    def meeting(self, step: int, stage: str = "") -> Iterator[Meeting]:
        """A block that each rank runs by itself, and may fail in; at its end all ranks have all messages.

        A process alone goes through it as if there were no block. Meetings may lie in each other: a rank that
        fails before the inner one reports its failure there, and no other rank goes on.

        Args:
            step: the number of the step.
            stage: the part of the step, where it has several meetings: ranks at another one are refused.

        Raises:
            FailedBatchError: on all ranks, where some raised it and no other failed in another way.
            BlackBoxError: some rank failed, and the error has each one's reason; or a rank died; or the marks
                differ. The error is of the kind `error`. Where all ranks failed, each raises its own error.
                A rank that fails while others exchange rows (`SharedRows`) gives its reason, and the others
                raise after the timeout.
        """
        meeting, cause = Meeting(), None
        if self.size == 1:
            yield meeting
            meeting.messages = [meeting.message]
            return
        try:
            yield meeting
        except Exception as error:  # raised below, when all know of it
            if error is self._raised:  # by an inner meeting, of which all ranks know
                raise
            cause = error
        try:
            marks = {**meeting.marks, "stage of the step": stage} if stage else meeting.marks
            answers = self._answers(step, cause, _Answer(meeting.message, marks))
            self._raise_failures(step, cause, answers)
            self.refuse_different(step, [answer.marks for answer in answers])
        except Exception as error:
            self._raised = error
            raise
        meeting.messages = [answer.message for answer in answers]

    def _answers(self, step: int, cause: Exception | None, answer: _Answer) -> list[_Answer]:
        """The answers of all ranks, in their order; with a cause, this one's says that it failed."""
        if cause is not None:
            answer.reason = f"{type(cause).__name__}: {cause}".rstrip(".")
            answer.batch = cause if isinstance(cause, FailedBatchError) else None
            answer.other = not isinstance(cause, FailedQueriesError)
        answers: list[Any] = [None] * self.size
        with self.answering(step, cause):
            dist.all_gather_object(answers, answer, self.group)
        # what all_gather_object sends: eight bytes for the length, and all as long as the longest
        self.exchanged += self.size * (8 + max(len(pickle.dumps(one)) for one in answers))
        return answers

    def _raise_failures(self, step: int, cause: Exception | None, answers: Sequence[_Answer]) -> None:
        """Raise what some ranks failed at, if any did; `cause` is what this one did."""
        batches = [answer.batch for answer in answers if answer.batch is not None]
        if batches and not any(answer.other for answer in answers):  # only some saw the rows that failed
            raise cause if isinstance(cause, FailedBatchError) else batches[0]
        failed = [f"rank {rank} failed: {a.reason}" for rank, a in enumerate(answers) if a.reason]
        if cause is not None and len(failed) == self.size:
            raise cause
        if failed:
            raise self._error(
                f"Step {step + 1}: expected {self.size} ranks to do their part, {'; '.join(failed)}. Mend "
                "that and take the step again, on all ranks."
            ) from cause

    def refuse_different(self, step: int, marks: Sequence[Mapping[str, int | str]]) -> None:
        """Refuse ranks whose fingerprints, in the order of ranks, differ from the first one's.

        Raises:
            BlackBoxError: Some differ; the error is of this object's kind and names what differs.
        """
        differences = {
            rank: [name for name, mark in of_rank.items() if mark != marks[0].get(name)]
            for rank, of_rank in enumerate(marks)
        }
        words = [
            f"other {' and '.join(names)} on rank {rank}" for rank, names in differences.items() if names
        ]
        if words:
            raise self._error(
                f"Step {step + 1}: expected all ranks to take the step of rank 0, got {', '.join(words)}. "
                "Give each the same settings, checkpoint and whole batches (no DistributedSampler), the same "
                "torch.manual_seed, and a journal to all or to none. Where other rows failed in the base, "
                "the black box is another there, or fails by chance: put it in a Retrying."
            )

    def all_of(self, step: int, numbers: Tensor, lengths: Sequence[int]) -> Tensor:
        """The numbers of all ranks, one rank's after the other's.

        Args:
            step: the number of the step.
            numbers: the numbers of this rank, `(lengths[rank],)`, on the CPU.
            lengths: how many numbers each rank has, known to all.

        Raises:
            BlackBoxError: a rank died; the error is of the kind `error`.
        """
        if self.size == 1:
            return numbers
        # To all one by one, not all_gather, which would fill every share up to the longest: shares of
        # equal cost differ a hundredfold in length.
        numbers = numbers.to(self.device)
        of_all = numbers.new_empty(sum(lengths))
        with self.answering(step):
            dist.all_to_all_single(
                of_all, numbers.repeat(self.size), list(lengths), [len(numbers)] * self.size, self.group
            )
            of_all = of_all.cpu()
        self.exchanged += of_all.numel() * of_all.element_size()
        return of_all

    @property
    def device(self) -> torch.device:
        """The device of exchanged tensors: NCCL serves GPUs' memory alone, gloo the CPU's."""
        nccl = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @contextmanager
    def answering(self, step: int, cause: Exception | None = None) -> Iterator[None]:
        """A block in which all ranks must answer; what torch says of one that does not becomes a sentence.

        It begins with what this rank failed at itself, if that is the cause.
        """
        began = perf_counter()
        Ranks.exchanges += 1
        try:
            yield
        except RuntimeError as error:
            text = " ".join(str(error).split())
            reason = f"{type(cause).__name__}: {cause}"[:300].rstrip(".")
            failure = "" if cause is None else f"rank {self.rank} failed: {reason}. Moreover, "
            raise self._error(
                f"{self._unit} {step + 1}: {failure}rank {self.rank} expected an answer of all {self.size} "
                f"ranks, got none from some: {text[:300].rstrip('.')}. A process died or hangs: its own "
                "output says more. Start all of them again from the last checkpoint."
            ) from (cause or error)
        finally:
            self.waited += perf_counter() - began


def apart_notice(owner: str, step: int, exchanges: int, together: str) -> Notice | None:
    """The warning of a step that a process took alone though nobody said so; None where all is well.

    Args:
        owner: the class of the gradient, which was given no `process_group`.
        step: the number of the step.
        exchanges: how many there had been before it: a process that has exchanged rows is in step.
        together: what processes with the whole batch are given to be in step.
    """
    if exchanges < Ranks.exchanges or not dist.is_available():
        return None
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size == 1:
        return None
    return Notice(
        "ranks apart",
        f"{owner}, step {step + 1}: expected to know what the {size} processes of torch.distributed do "
        "together, got no process_group. Each takes the gradient of its own batch, and their weights drift "
        f"apart. Give all of them the whole batch and {together}. Or say process_group=None, where you "
        "average .grad by torch.distributed.all_reduce, or where they train apart on purpose.",
        RanksWarning,
    )


def fingerprint(network: nn.Module, batch: Batch, settings: str) -> dict[str, int]:
    """Checksums, by name, of the state that must be the same on all ranks before they take a step together.

    They have 32 bits each, so a different state passes once in 4e9 times.

    Args:
        network: The network: its weights and buffers count, and the generators of its random layers.
        batch: The batch, whose tensors count.
        settings: All else that matters, in words.
    """
    weights = [*network.parameters(), *network.buffers()]
    devices = {tensor.device for tensor in weights if tensor.is_cuda}
    generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return {
        "weights": checksum(weights),
        "batch": checksum(tensors(batch)),
        "random state": checksum(generators),
        "settings": zlib.crc32(settings.encode()),
    }


def dealt(several: Sequence[T], rank: int, size: int) -> list[T]:
    """Return a process's share when things are dealt back and forth: to 0, 1, 1, 0, 0, 1, ... of two.

    Queries of early layers cost more, and stand first: dealt in one direction, the first process would have
    most to do in each round.
    """
    rounds = (divmod(place, size) for place in range(len(several)))
    receivers = [seat if number % 2 == 0 else size - 1 - seat for number, seat in rounds]
    return [one for one, receiver in zip(several, receivers, strict=True) if receiver == rank]


def is_sendable(error: Exception | None) -> bool:
    """Say whether an error can be sent to others; not one that cannot be made anew from its arguments."""
    try:
        pickle.loads(pickle.dumps(error))  # of our own
    except Exception:  # a user's class may raise anything in its own __init__ or __reduce__
        return False
    return True


def checksum(several: Iterable[Tensor]) -> int:
    """CRC-32 of the dtypes, shapes and bits of some tensors."""
    crc = 0
    for tensor in several:
        crc = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(bits(tensor.cpu()).numpy().data, crc)
    return crc
