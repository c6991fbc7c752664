"""`Window`: one run of the objective as a table of rows: the batch, and the boxes' inputs and answers."""

from __future__ import annotations

import reprlib
from collections import UserList, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from zo.batches import (
    Batch,
    beside_tensors,
    bytes_of,
    emptied,
    filled,
    joined,
    map_tensors,
    some_rows,
    tensors,
)
from zo.errors import TangentError
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recorded_call import RecordedCall, joined_calls

_LISTS = (list, tuple, UserList, deque)


@dataclass(frozen=True)
class Window:
    """The record of one run of the objective; it holds each number once, and makes tangents' pairs from them.

    Attributes:
        step: the step that recorded it, from 0.
        batch: the batch of the run: any nesting of tensors with rows first. In the place of each row that
            failed stands one that did not, here and in `calls`.
        calls: the calls of the boxes, in their order.
        units: for each call the units of its box, `response_scale` of `CallPairs`.
        losses: the losses, `(rows,)`, NaN where a row failed.
        survived: `(rows,)` bool, False where a row failed: the mean loss is over the others.
    """

    step: int
    batch: Batch
    calls: tuple[RecordedCall, ...]
    units: tuple[Tensor, ...]
    losses: Tensor
    survived: Tensor

    def pairs(self, boxes: Sequence[BlackBoxFunction]) -> tuple[CallPairs, ...]:
        """Return the rows that each call shows a tangent.

        Args:
            boxes: the boxes that were called.
        """
        return tuple(
            replace(call.pairs(boxes[call.box], self.survived), response_scale=units)
            for call, units in zip(self.calls, self.units, strict=True)
        )

    def rows(self, places: Tensor) -> Window:
        """Some of its rows, `(n,)` places, as a window of n rows.

        Raises:
            TangentError: a call's rows are not the batch's, or the batch holds a list of as many entries.
            ObjectiveError: the batch holds a jagged tensor.
        """
        count = len(self.survived)
        self.refuse_undrawable()
        return replace(
            self,
            batch=map_tensors(lambda tensor: some_rows(tensor, places), self.batch),
            calls=tuple(call.on(places, count) for call in self.calls),
            losses=self.losses[places.to(self.losses.device)],
            survived=self.survived[places.to(self.survived.device)],
        )

    def refuse_undrawable(self) -> None:
        """Refuse to draw rows, see `rows`."""
        count = len(self.survived)
        _refuse_lists(self.batch, count)
        for number, call in enumerate(self.calls, start=1):
            size = len(call.inputs[0])
            if size % count or not size:
                raise TangentError(
                    f"TangentGradient.replay: expected calls with rows for each row of the batch, got call "
                    f"{number} with {size} rows for a batch of {count}. Train it without replays."
                )

    @cached_property
    def form(self) -> list[Any]:
        """The layout of calls and batch; windows must agree in it for their rows to be joined."""
        rows = len(self.survived)
        calls = [
            (
                call.box,
                len(call.inputs[0]) / rows,
                [(t.shape[1:], t.dtype) for t in tensors(call)],
            )
            for call in self.calls
        ]
        return [calls, [(t.shape[1:], t.dtype) for t in tensors(self.batch)]]

    @cached_property
    def leaves(self) -> str:
        """The contents of the batch beside its tensors, as text."""
        return beside_tensors(self.batch)

    @cached_property
    def places(self) -> Tensor:
        """Rows that survived, `(n,)`, on the CPU."""
        return self.survived.cpu().nonzero().flatten()

    @cached_property
    def size(self) -> int:
        """The bytes that it takes."""
        table = (self.batch, self.losses, self.survived, self.calls)
        return sum(map(bytes_of, tensors(table)))


def joined_rows(parts: Sequence[tuple[Window, Tensor]]) -> Window:
    """Rows of several windows of one form, one after another, with step and units of the last.

    Args:
        parts: windows, and places of rows in each, `(n,)`.

    Raises:
        TangentError, ObjectiveError: see `Window.rows`.
    """
    if len(parts) == 1:
        window, places = parts[0]
        return window.rows(places)
    windows = []
    for window, places in parts:
        if len(window.survived) == 1:  # all of it, which joining copies
            window.refuse_undrawable()
            windows.append(window)
        else:
            windows.append(window.rows(places))
    last = windows[-1]
    columns: list[list[Tensor]] = [[] for _ in windows]
    slots = [
        emptied(window.batch, tensors, lambda tensor: tensor)
        for window, tensors in zip(windows, columns, strict=True)
    ]
    return replace(
        last,
        batch=filled(slots[-1], [joined(parts) for parts in zip(*columns, strict=True)]),
        calls=tuple(joined_calls(same) for same in zip(*(window.calls for window in windows), strict=True)),
        losses=torch.cat([window.losses for window in windows]),
        survived=torch.cat([window.survived for window in windows]),
    )


def plain(window: Window) -> dict[str, Any]:
    """A window in tensors, tuples, lists and dicts, as a checkpoint holds them."""
    return {
        "step": window.step,
        "batch": window.batch,
        "calls": [(call.box, list(call.inputs), list(call.outputs)) for call in window.calls],
        "units": list(window.units),
        "losses": window.losses,
        "survived": window.survived,
    }


def window_of(state: dict[str, Any]) -> Window:
    """Rebuild a window from the output of `plain`."""
    calls = tuple(RecordedCall(box, tuple(i), tuple(o)) for box, i, o in state["calls"])
    by_row = state["losses"], state["survived"]
    return Window(state["step"], state["batch"], calls, tuple(state["units"]), *by_row)


def without_failed(
    survived: Tensor,
    calls: list[RecordedCall],
    batch: Batch,
) -> tuple[list[RecordedCall], Any]:
    """Put a row that survived in the place of each failed one, for the loss to leave out.

    A NaN times a gradient of zero is a NaN. And without the rows, draws and shapes that depend on the number
    of rows would change.

    Args:
        survived: whether each row survived, `(rows,)` bool.
        calls: the recorded calls.
        batch: tensors with rows first.

    Returns:
        Calls and batch.
    """
    if survived.all():  # the caller may write to the batch later
        return calls, map_tensors(Tensor.clone, batch)
    source = torch.arange(len(survived), device=survived.device)
    source[~survived] = torch.nonzero(survived)[0]
    table = map_tensors(lambda tensor: some_rows(tensor, source), batch)
    return [call.on(source, len(source)) for call in calls], table


def _refuse_lists(batch: Batch, rows: int) -> None:
    """Refuse a list of ids, say, with an entry for each row: no row would be drawn of it."""

    def look(sequence: Any) -> Any:
        if (
            len(sequence) == rows
            and not hasattr(sequence, "_fields")
            and next(tensors(sequence), None) is None
        ):
            raise TangentError(
                f"TangentGradient.replay: expected a batch with all data of its rows in tensors, got "
                f"{type(sequence).__name__} {reprlib.repr(sequence)} for {rows} rows, which would stay as it "
                "is where rows are drawn. Make it a tensor, as torch.tensor(ids), or leave it out of the "
                "batch."
            )
        for entry in sequence:
            map_tensors(look, entry, _LISTS)
        return sequence

    map_tensors(look, batch, _LISTS)
