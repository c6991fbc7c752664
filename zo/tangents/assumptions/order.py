"""A check that an objective treats rows the same wherever they stand, on which draws of rows rely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxError, BlackBoxFunction
from blackbox.calls import intercepted
from zo.batches import map_tensors
from zo.errors import TangentError
from zo.evaluators.evaluator import Step
from zo.evaluators.state import Snapshot
from zo.objective import losses, uncompiled
from zo.tangents.assumptions.row_state import Entry, State, entries_with_rows, put, state_of
from zo.tangents.assumptions.steady import LEVELS, Steady
from zo.tangents.playback.anchored import FromRecord
from zo.tangents.record.recorded_call import flat_rows
from zo.tangents.record.window import Window


def refuse_rows_by_place(
    step: Step, boxes: Sequence[BlackBoxFunction], window: Window, number: int = 0
) -> None:
    """Refuse an objective in which it matters where a row stands in the batch, since replays draw new rows.

    The objective is evaluated on the recorded answers, and again with rows in other places. No box runs, and
    the network is left as it was. Each row has to keep its loss and its inputs of the boxes. Results of all
    rows together may change, such as a batch norm's statistics. Torch draws one number for all rows
    (`Steady`). Where rows are drawn by other generators, only the order of calls can be judged.

    Three things are refused: calls that have the rows in another order than the batch; networks that keep
    rows of a batch for the next, such as a hidden state or a queue; and a dependence on the place of a row.
    Such places matter for targets that are kept beside the batch, the nodes of one graph, or a time axis that
    comes first. State that the objective keeps beside the network shows only in its effect on places.

    Args:
        step: network, parameters and objective.
        boxes: the boxes that the objective calls.
        window: the recorded rows, two or more.
        number: how often this was checked before; uniform numbers are put at another level each time.

    Raises:
        TangentError: the place of a row matters.
    """
    look = _Look(step, boxes, window, LEVELS[number % len(LEVELS)])
    if look.says_nothing() or look.count == 2:  # of which the one other order may be the objective's own
        _refuse_other_order(look)
    if look.says_nothing():
        return
    evaluations = [(order, look.evaluated(order)) for order in _orders(look.count)]
    _refuse_row_state(look, [evaluation.state for _, evaluation in evaluations])
    _refuse_turned(look, evaluations)


@dataclass(frozen=True)
class _OrderedEvaluation:
    """An evaluation of the objective on recorded answers.

    Attributes:
        losses: `(rows,)`.
        inputs: the inputs of each call as rows, and their leading axes.
        state: the state of the network after it.
    """

    losses: Tensor
    inputs: list[tuple[list[Tensor], tuple[int, ...]]]
    state: State


class _Look:
    """Evaluations of the objective with the rows of a window in other places.

    Attributes:
        count: how many rows there are.
        first: the evaluation with rows as they were recorded.
        again: the same once more: what differs there is drawn.
    """

    def __init__(self, step: Step, boxes: Sequence[BlackBoxFunction], window: Window, level: float) -> None:
        self._step, self._boxes, self._window = step, boxes, window
        self.count = len(window.survived)
        self._steady = Steady(self.count, level)
        self._stays = torch.arange(self.count)
        self.first, self.again = self.evaluated(self._stays), self.evaluated(self._stays)

    def evaluated(self, order: Tensor, state: State | None = None) -> _OrderedEvaluation:
        """The objective on rows in this order, from the network's state or a part of another one."""
        window = self._window.rows(order)
        try:
            return self._evaluated(window, state, self._steady)
        except BlackBoxError:
            raise
        except Exception:  # it has run before, so that this is of how it is looked at
            self._steady.chooses = True
            return self._evaluated(window, state, nullcontext())

    def begun_with(self, state: State) -> _OrderedEvaluation:
        """Evaluate the recorded rows, from a state that differs in one part."""
        return self.evaluated(self._stays, state)

    def says_nothing(self) -> bool:
        """Say whether rows are drawn by their place, so that they cannot be compared."""
        return self._steady.chooses or self.differs(self.again) is not None

    def differs(self, found: _OrderedEvaluation, order: Tensor | None = None) -> str | None:
        """Name a part of an evaluation that differs from the first with rows in this order, or None."""
        order = self._stays if order is None else order
        calls = zip(self.first.inputs, found.inputs, strict=True)
        for number, ((rows, _), (image, _)) in enumerate(calls):
            if not all(map(self.same, self.at(rows, order), image)):
                return f"what it asks of {self.box(number)!r} in call {number + 1}"
        losses = self.first.losses[order.to(self.first.losses.device)]
        return None if self.same(losses, found.losses) else "its loss"

    def at(self, rows: Sequence[Tensor], order: Tensor) -> list[Tensor]:
        """Rows of a call, in the order in which the batch's are."""
        per_row = len(rows[0]) // self.count
        places = (order[:, None] * per_row + torch.arange(per_row)).flatten()
        return [tensor[places.to(tensor.device)] for tensor in rows]

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Say whether two tensors are the same, to the rounding of the computation."""
        return _same(a, b, self._steady.eps)

    def box(self, number: int) -> BlackBoxFunction:
        """The box of a call."""
        return self._boxes[self._window.calls[number].box]

    def name(self, entry: Entry) -> str:
        """An entry of the network's state, as Class.name."""
        return f"{type(dict(self._step.network.named_modules())[entry.module]).__name__}.{entry.name}"

    def _evaluated(
        self, window: Window, state: State | None, steady: AbstractContextManager[Any]
    ) -> _OrderedEvaluation:
        network, objective = self._step.network, self._step.objective
        listener, snapshot = _Heard(self._boxes, window.calls, window.survived), Snapshot(network)
        batch = map_tensors(Tensor.clone, window.batch)  # an objective may write to what it is given
        try:
            if state is not None:
                put(network, state)
            with torch.enable_grad(), uncompiled(), intercepted(listener.call), steady:
                by_row = losses(objective, network, batch, self.count, with_graph=True).detach()
            return _OrderedEvaluation(by_row, listener.inputs, state_of(network))
        finally:
            snapshot.restore()


def _refuse_other_order(look: _Look) -> None:
    """Refuse an objective that gives a box the rows in another order than the batch has.

    Recorded calls are drawn by rows of the batch. In a call with k rows for each row of the batch these are
    taken to be side by side, as of leading axes (rows, k). In another order, such as that of
    `torch.cat([first, second])`, a row would get the box's answer to another row.

    Only an objective with the batch's order gives equal results for the rows 1, 2, ..., n - 1, 1. One that
    draws numbers by the place of a row cannot be compared; it is refused where leading axes do not have the
    batch's rows first.
    """
    row_order = torch.cat([torch.arange(1, look.count), torch.tensor([1])])
    evaluation = look.evaluated(row_order)
    for number, ((rows, leading), (image, _)) in enumerate(
        zip(look.first.inputs, evaluation.inputs, strict=True)
    ):
        if all(map(look.same, look.at(rows, row_order), image)):
            continue
        leads_with_rows = leading[:1] == (look.count,) and look.count not in leading[1:]
        if leads_with_rows and not all(map(_among, image, rows)):
            break  # numbers that are drawn, or what all rows have a part in, as in a batch norm
        raise TangentError(
            f"TangentGradient.replay: expected call {number + 1}, of {look.box(number)!r}, with its rows in "
            f"the order of the batch's {look.count}, got leading axes {leading} in another order, or with "
            "numbers that are drawn: rows would be answered by what was recorded of others. Give the box "
            "leading axes (rows, k), as torch.stack([first, second], dim=1) has, or train without replays."
        )


def _refuse_row_state(look: _Look, turned: Sequence[State]) -> None:
    """Refuse a network that keeps rows of a batch, and what follows depends on them.

    Args:
        look: the evaluations.
        turned: the states behind rows in other places.
    """
    states = look.first.state, look.again.state
    names = dict.fromkeys(
        entry for state in turned for entry in entries_with_rows(states[0], state, states[1], look.same)
    )
    if not names or not look.differs(look.begun_with({entry: states[0][entry] for entry in names})):
        return
    raise TangentError(
        "TangentGradient.replay: expected a network whose answers do not depend on the rows of batches "
        f"before, got {look.name(next(iter(names)))}, which holds such rows. Replays draw rows anew: they "
        "would run with the state of others and leave theirs behind. Put the state of each row into the "
        "batch, rows first and detached, as in backward((inputs, state.detach())), or train without replays "
        "(Limits(replays=0))."
    )


def _refuse_turned(look: _Look, evaluations: Sequence[tuple[Tensor, _OrderedEvaluation]]) -> None:
    """Refuse an objective in which a row gets another loss, or a box another input, in another place."""
    for order, evaluation in evaluations:
        what = look.differs(evaluation, order)
        if what is not None:
            _refuse_other_order(look)  # which says more, where it is that
            raise TangentError(
                f"TangentGradient.replay: expected each of {look.count} rows to keep {what} where rows "
                "change places, got others: objective or network go by the place of a row, as with targets "
                "or weights beside the batch, neighbours that are compared, the nodes of one graph as rows, "
                "or a time axis that comes first. Replays draw rows anew. Put what belongs to a row into the "
                "batch, and what belongs together into one row, or train without replays (Limits(replays=0))."
            )


def _orders(count: int) -> Iterator[Tensor]:
    """Yield two orders of rows that generate all others: results equal under both depend on no place."""
    places = torch.arange(count)
    yield torch.cat([places[:2].flip(0), places[2:]])
    if count > 2:
        yield places.roll(-1)


class _Heard(FromRecord):
    """Keeps the inputs of the boxes' calls.

    Attributes:
        inputs: the inputs of each call as rows, and their leading axes.
    """

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.inputs: list[tuple[list[Tensor], tuple[int, ...]]] = []

    def compare(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> None:
        """Keep the inputs; none are refused."""
        leading = tuple(arrays[0].shape[: arrays[0].ndim - len(box.inputs[0].shape)])
        pairs = zip(box.inputs, arrays, strict=True)
        rows = [flat_rows(spec, array)[..., None].flatten(1).clone() for spec, array in pairs]
        self.inputs.append((rows, leading))


def _same(a: Tensor, b: Tensor, eps: float = 0.0) -> bool:
    """Say whether two tensors are the same to rounding, as the order of sums may change it.

    Args:
        a: one.
        b: the other, of the same shape.
        eps: the machine epsilon of the coarsest floats that they were computed with.
    """
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.layout is not torch.strided or a.is_nested:
        return True  # nothing can be said
    if not a.is_floating_point():
        return torch.equal(a, b)
    eps = max(eps, torch.finfo(a.dtype).eps)
    tolerance = eps**0.5 * float(a.nan_to_num(0.0, 0.0, 0.0).abs().amax()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True)


def _among(rows: Tensor, known: Tensor) -> bool:
    """Say whether each row equals one of the known rows, to rounding.

    Args:
        rows: `(n, size)`.
        known: `(m, size)`; each of `rows` is held against the one with the nearest weighed sum.
    """
    weigh = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device).cos()
    sums, known_sums = (numbers.double().nan_to_num(0.0, 0.0, 0.0) @ weigh for numbers in (rows, known))
    order = known_sums.argsort()
    above = torch.searchsorted(known_sums[order], sums).clamp(1, len(known_sums) - 1)
    nearer_below = (known_sums[order[above - 1]] - sums).abs() < (known_sums[order[above]] - sums).abs()
    return _same(known[order[torch.where(nearer_below, above - 1, above)]], rows)
