"""Whether an objective asks boxes for rows in the order of the batch, on which draws of rows rely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from zo.batches import map_tensors
from zo.errors import TangentError
from zo.evaluators.evaluator import Step
from zo.evaluators.state import Snapshot
from zo.objective import losses
from zo.tangents.recording import flat_rows
from zo.tangents.replay import Answers
from zo.tangents.window import Window
from zo.tangents.windows import drawn


def refuse_other_order(step: Step, boxes: Sequence[BlackBoxFunction], window: Window) -> None:
    """Refuse an objective that gives a box rows in another order than that of the batch.

    What was recorded is drawn by rows of the batch, and those of a call with k rows for each are taken to
    be side by side, as of leading axes (rows, k). Where an objective has them in another order, as
    `torch.cat([first, second])` has, a row would be answered by what the box said of others.

    The objective is evaluated twice on what was recorded, the second time with the rows 1, 2, ..., n - 1, 1;
    no box runs, and the network is left as it was. Only an objective with the batch's order makes the same
    of its calls' rows. One that draws numbers by the place of a row, whose inputs cannot be compared, is
    refused where leading axes do not have the batch's rows first.

    A loss may depend on the place of its row too, as by targets that the objective keeps beside the batch. So
    the rows are also turned over among each other, and each must keep its loss. Where random numbers are
    drawn that says nothing, and is left out.

    Args:
        step: network, parameters and objective.
        boxes: the boxes that the objective calls.
        window: two rows or more.

    Raises:
        TangentError: it does.
    """
    count = len(window.survived)
    others = torch.cat([torch.arange(1, count), torch.tensor([1])])
    before = Snapshot(step.network)

    def evaluated(shown: Window) -> tuple[Tensor, list[tuple[list[Tensor], tuple[int, ...]]], bool]:
        """The losses, what boxes were asked, and whether torch's random numbers were drawn."""
        answers, state = _Heard(boxes, shown.calls, shown.survived), torch.get_rng_state()
        batch = map_tensors(Tensor.clone, shown.batch)  # an objective may write to what it is given
        with torch.enable_grad(), intercepted(answers.call):
            by_row = losses(step.objective, step.network, batch, count, with_graph=True).detach()
        draws = not torch.equal(state, torch.get_rng_state())
        before.restore()
        return by_row, answers.heard, draws

    by_row, first, draws = evaluated(window)
    heard = [first, evaluated(drawn(window, others))[1]]
    for number, ((first, leading), (second, _)) in enumerate(zip(*heard, strict=True)):
        per_row = len(first[0]) // count
        places = (others[:, None] * per_row + torch.arange(per_row)).flatten().to(first[0].device)
        pairs = list(zip(first, second, strict=True))
        if not all(_same(a[places], b) for a, b in pairs):
            leads_with_rows = leading[:1] == (count,) and count not in leading[1:]
            if leads_with_rows and not all(_among(b, a) for a, b in pairs):
                break  # numbers that are drawn, or what all rows have a part in, as in a batch norm
            raise TangentError(
                f"TangentGradient.replay: expected call {number + 1}, of "
                f"{boxes[window.calls[number].box]!r}, with its rows in the order of the batch's {count}, "
                f"got leading axes {leading} in another order, or with numbers that are drawn: rows would "
                "be answered by what was recorded of others. Give the box leading axes (rows, k), as "
                "torch.stack([first, second], dim=1) has, or train without replays."
            )
    turned = torch.cat([torch.arange(1, count, 2), torch.arange(0, count, 2)])
    if draws or not by_row.is_cpu:  # a GPU's generator is another
        return
    keep_theirs = _same(by_row[turned], evaluated(drawn(window, turned))[0])
    if not keep_theirs and _same(by_row, evaluated(window)[0]):  # else it draws by other generators
        raise TangentError(
            f"TangentGradient.replay: expected each of {count} rows to keep its loss where rows change "
            "places, got others: the objective has numbers that go by the place of a row, such as targets or "
            "weights beside the batch, or compares neighbours. Put what belongs to a row into the batch, or "
            "train without replays."
        )


class _Heard(Answers):
    """Keeps what boxes are asked: of each call the inputs as rows, and their leading axes."""

    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.heard: list[tuple[list[Tensor], tuple[int, ...]]] = []

    def check(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> None:
        """Keep the inputs; none are refused."""
        leading = tuple(arrays[0].shape[: arrays[0].ndim - len(box.inputs[0].shape)])
        asked = zip(box.inputs, arrays, strict=True)
        rows = [flat_rows(spec, array)[..., None].flatten(1) for spec, array in asked]
        self.heard.append((rows, leading))


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two are the same to rounding, as the order of sums may change it."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    allowed = torch.finfo(a.dtype).eps ** 0.5 * float(a.nan_to_num(0.0, 0.0, 0.0).abs().amax())
    return torch.allclose(a, b, rtol=0.0, atol=allowed, equal_nan=True)


def _among(rows: Tensor, known: Tensor) -> bool:
    """Whether each row is one of some others, to rounding: by a sum of its numbers, each with its weight."""
    weigh = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device).cos()
    sums, others = (numbers.double().nan_to_num(0.0, 0.0, 0.0) @ weigh for numbers in (rows, known))
    others = others.sort().values
    above = torch.searchsorted(others, sums).clamp(1, len(others) - 1)
    apart = torch.minimum((others[above - 1] - sums).abs(), (others[above] - sums).abs())
    eps = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 0.0
    return bool((apart <= eps**0.5 * others.abs().amax()).all())
