"""`helped`: a block of the first process, for which the others evaluate a share of each call's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blackbox import BlackBoxFunction, Budgeted, Wrapper
from blackbox.calls import intercepted, rows_run_by, runner
from blackbox.failures import Outcome
from zo.errors import RanksError
from zo.execution.ranks import Ranks, is_sendable
from zo.execution.shared_rows import SharedRows, apart


@contextmanager
def helped(
    ranks: Ranks, boxes: Sequence[BlackBoxFunction], step: int, device: torch.device
) -> Iterator[None]:
    """A block in which the first process calls boxes; the others answer a share of the rows before it.

        with helped(ranks, boxes, step, device):
            if ranks.rank == 0:
                losses = objective(network, batch)

    The others reach the block when the first has left it. The first alone goes through the objective: where
    it fails there, no other waits for a call that never comes.

    Args:
        ranks: the processes, which all come here.
        boxes: the boxes whose rows are shared out.
        step: the number of the step.
        device: the network's device, where the others evaluate rows that the first has on a GPU.

    Raises:
        BlackBoxError: a process died; the error is of the ranks' kind.
        RanksError: in a call of the first process another one failed at its rows, and raises that itself.
    """
    if ranks.rank:
        _help(ranks, boxes, step, device)
        yield
    elif ranks.size == 1:
        yield
    else:
        first = _First(ranks, boxes, step)
        try:
            with apart(), rows_run_by(first.run):
                yield
        finally:
            first.end()


class _First:
    """Runs the rows of the first process's calls, and has the others run their shares.

    Args:
        ranks: the processes.
        boxes: the boxes whose rows are shared out.
        step: the number of the step.
    """

    def __init__(self, ranks: Ranks, boxes: Sequence[BlackBoxFunction], step: int) -> None:
        self._ranks, self._step, self._runner = ranks, step, runner()
        self._places = {id(box): place for place, box in enumerate(boxes)}
        self._in_reach = True

    def run(self, box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run the box on rows that are checked and finite."""
        rows, size, place = len(inputs[0]), self._ranks.size, self._places.get(id(box))
        together = rows if place is None else rows_together(box, rows, size)
        blocks = [range(start, min(start + together, rows)) for start in range(0, rows, together)]
        with rows_run_by(self._runner):
            if len(blocks) == 1:
                return _run(box, inputs)
            parts = [tuple(tensor[block.start : block.stop] for tensor in inputs) for block in blocks]
            self._send([(place, inputs[0].is_cpu, _in_memory(parts[rank::size])) for rank in range(size)])
            first_answer = _answer(box, parts[::size])
        answers: list[Any] = [None] * size
        with self._ranks.answering(self._step):
            dist.gather_object(None, answers, _root(self._ranks), self._ranks.group)
        self._in_reach = True
        if isinstance(first_answer, Exception):
            raise first_answer
        for rank, answer in enumerate(answers[1:], start=1):
            if answer is None:
                raise RanksError(
                    f"expected rank {rank} to evaluate its share of the rows, which failed there."
                )
        return _joined(blocks, [first_answer, *answers[1:]], inputs[0].device)

    def end(self) -> None:
        """Let the others go on; not where one cannot be reached any more, which ends the step."""
        if self._in_reach:
            self._send([None] * self._ranks.size)

    def _send(self, orders: list[Any]) -> None:
        self._in_reach = False  # until they have answered
        with self._ranks.answering(self._step):
            dist.scatter_object_list([None], orders, _root(self._ranks), self._ranks.group)


def _help(ranks: Ranks, boxes: Sequence[BlackBoxFunction], step: int, device: torch.device) -> None:
    """Evaluate the rows that the first process sends, until it is done; then raise what failed here."""
    failed: Exception | None = None
    while True:
        orders: list[Any] = [None]
        with ranks.answering(step):
            dist.scatter_object_list(orders, None, _root(ranks), ranks.group)
        if orders[0] is None:
            break
        place, on_cpu, parts = orders[0]
        if not on_cpu:
            parts = [tuple(tensor.to(device) for tensor in part) for part in parts]
        with apart(), intercepted(None):
            answer = _answer(boxes[place], parts)
        if isinstance(answer, Exception):
            failed = failed or answer
        sent = None if isinstance(answer, Exception) else list(map(_to_send, answer))
        with ranks.answering(step):
            dist.gather_object(sent, None, _root(ranks), ranks.group)
    if failed is not None:
        raise failed


def _root(ranks: Ranks) -> int:
    """The first process's number among all that there are."""
    assert ranks.group is not None
    return dist.get_global_rank(ranks.group, 0)


def rows_together(box: BlackBoxFunction, rows: int, size: int) -> int:
    """Return how many rows of a call one process evaluates at a time: all where only the first may.

    Shares are equal, or the blocks of a `SharedRows` in the stack. The first process evaluates all rows where
    it alone keeps a budget, where noise might be the same in all processes, and where rows depend on rows
    before them.

    Args:
        box: the box with its wrappers.
        rows: the number of rows of the call.
        size: how many processes there are.
    """
    if box.of_process or not box.settable:
        return rows
    part: BlackBoxFunction = box
    while isinstance(part, Wrapper):
        if isinstance(part, Budgeted):
            return rows
        if isinstance(part, SharedRows):
            return part.block or rows
        part = part.box
    return -(-rows // size) if box.deterministic else rows


def _run(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
    """Run the box, by the function that runs rows in this context."""
    run = runner()
    return box.run_rows(inputs) if run is None else run(box, inputs)


def _answer(box: BlackBoxFunction, parts: Sequence[tuple[Tensor, ...]]) -> list[Outcome] | Exception:
    """Return the box's results for each part, or the error that it raised."""
    try:
        return [_run(box, part) for part in parts]
    except Exception as error:  # raised where all know of it
        return error


def _in_memory(parts: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    """Parts without the rest of the call, in the CPU's memory."""
    return [tuple(tensor.detach().cpu().clone() for tensor in part) for part in parts]


def _to_send(outcome: Outcome) -> Outcome:
    """An answer that can be sent: an error that cannot be made anew goes as its words."""
    failed = {
        row: why
        if is_sendable(why.error)
        else replace(why, error=RuntimeError(f"{type(why.error).__name__}: {why.error}"))
        for row, why in outcome.failed.items()
    }
    return Outcome(_in_memory([outcome.outputs])[0], failed)


def _joined(blocks: Sequence[range], answers: Sequence[list[Outcome]], device: torch.device) -> Outcome:
    """Join the outcomes of blocks that were dealt to the processes in turn."""
    size = len(answers)
    dealt = [answers[place % size][place // size] for place in range(len(blocks))]
    columns = zip(*(outcome.outputs for outcome in dealt), strict=True)
    failed = {
        block.start + row: why
        for block, outcome in zip(blocks, dealt, strict=True)
        for row, why in outcome.failed.items()
    }
    return Outcome(tuple(torch.cat([part.to(device) for part in column]) for column in columns), failed)
