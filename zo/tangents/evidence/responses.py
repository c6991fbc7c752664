"""`Response`: the boxes' answer to a check's changes, beside the tangents' prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents.evidence.predictions import Squares, relative_error
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.record.before import Before, values_before
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.record.recording import Recorder


class Response(NamedTuple):
    """The response of a call to a query's change of its inputs, in each row.

    Attributes:
        d: the change of the differentiable inputs, `(rows, size_in)`; zero where not valid.
        change: the change of the outputs, `(rows, size_out)`; zero where not valid.
        valid: `(rows,)` bool; False where a row failed, or nothing, or something else, changed.
    """

    d: Tensor
    change: Tensor
    valid: Tensor


def flat_share(responses: Sequence[Response]) -> float | None:
    """The share of the moved rows whose answers stayed to the bit; None if no input changed.

    Of a smooth box hardly any stay. One that is constant in pieces, as trees are, shows nothing of its
    response in them, however many are asked.
    """
    count = sum(int(response.valid.sum()) for response in responses)
    same = sum(int((one.valid & (one.change == 0).all(dim=-1)).sum()) for one in responses)
    return same / count if count else None


def responses_of(gradient: StepGradient, recorder: Recorder) -> list[Response]:
    """The check's calls against the base's; none where the two differ in more than numbers."""
    window = gradient.window
    if [query.box for query in recorder.calls] != [call.box for call in window.calls]:
        return []  # the objective calls others when its weights are moved
    responses = []
    for query, call, at in zip(recorder.calls, window.calls, gradient.at_calls, strict=True):
        if any(t.shape != base.shape for t, base in zip(query.inputs, call.inputs, strict=True)):
            return []
        box = gradient.boxes[call.box]
        d, same = _change(box.inputs, call.inputs, query.inputs)
        if call.before is not None:
            d = torch.cat([d, _change_before(box, call.before, query, recorder)], dim=1)
        change, _ = _change(box.outputs, call.outputs, query.outputs)
        valid = d.isfinite().all(dim=-1) & change.isfinite().all(dim=-1) & same & at.rows.alive
        valid &= (d != 0).any(dim=-1)  # at the first call, say, nothing has changed yet
        d, change = (torch.where(valid[:, None], part, 0.0) for part in (d, change))
        responses.append(Response(d, change, valid))
    return responses


def _change_before(box: BlackBoxFunction, before: Before, query: RecordedCall, recorder: Recorder) -> Tensor:
    """Return the change of a call's memory, `(rows, size)`; zero where it has none of its own."""
    if not before.numbers:
        return torch.zeros_like(before.values)
    earlier = [recorder.calls[number].inputs for number in before.numbers]
    return values_before(box, before.lags, query.inputs, earlier) - before.values


def _change(
    specs: Sequence[ArraySpec], base: Sequence[Tensor], moved: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the change of differentiable arrays, end to end, `(rows, size)`; and where all else stayed."""
    parts, same = [], torch.ones(len(base[0]), dtype=torch.bool, device=base[0].device)
    for spec, at_base, at_move in zip(specs, base, moved, strict=True):
        at_base, at_move = (array[..., None].flatten(1) for array in (at_base, at_move))
        if spec.learned:
            parts.append((at_base, at_move))
        if spec.context:
            same &= (at_move == at_base).all(dim=-1)
    base_numbers, moved_numbers = (torch.cat(arrays, dim=-1) for arrays in zip(*parts, strict=True))
    return moved_numbers - base_numbers, same


def predicted_of(gradient: StepGradient, responses: Sequence[Response]) -> list[Tensor]:
    """J d in each of the check's calls, `(rows, size_out)`; no tangent is asked where nothing has changed."""
    return [
        at.push(response.d) if bool(response.valid.any()) else response.change
        for at, response in zip(gradient.at_calls, responses, strict=False)
    ]


def errors_of_responses(
    calls: Sequence[CallPairs],
    responses: Sequence[Response],
    predictions: Sequence[Tensor],
    rounding: Sequence[Tensor],
) -> tuple[float | None, float]:
    """Return how well J d predicts the responses in the check's calls, in units of a usual response.

    Returns:
        The relative error of J d; and the share of rounding in the responses. The predicted responses count
        for that share where they are larger: if no output answers, rounding is not what hides them.
    """
    squares: list[Squares | None] = []
    roundings: list[Squares | None] = []
    for pairs, measurement, answer, units in zip(calls, responses, predictions, rounding, strict=False):
        valid = measurement.valid
        if bool(valid.any()):
            true, unit = measurement.change, pairs.response_scale.double()
            short = reciprocal(unit) if unit.any() else torch.ones_like(unit)
            error, size, expectation, blur = (
                float((numbers[valid].double() * short).square().sum())
                for numbers in (answer - true, true, answer, units)
            )
            squares.append((error, size))
            roundings.append((blur, max(size, expectation)))
    return relative_error(squares), relative_error(roundings) or 0.0
