"""The error of tangents' predictions of a step, before they learn from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zo.tangents.evidence.outliers import Outliers
from zo.tangents.models.form import Form
from zo.tangents.record.pairs import CallPairs, all_rows, reciprocal
from zo.tangents.record.units import Units
from zo.tangents.tangent import Tangent, bring, sources

Squares = tuple[float, float]  # of errors, and of what they are measured by

AT_ONCE = 2**17  # numbers of inputs that a tangent is shown at once, unless one call has more


@torch.no_grad()
def predict(
    tangent: Tangent, calls: Sequence[CallPairs], units: Units, outliers: Outliers, rows: int
) -> tuple[list[CallPairs], list[Squares | None], float]:
    """Let a tangent predict the answers of a step, before it has seen any of them.

    Args:
        tangent: the tangent of one box.
        calls: the calls of that box in the step, one or more, in their order.
        units: the units of that box, which take in the calls.
        outliers: the outliers of that box, which take in the calls.
        rows: the number of rows of the batch.

    Returns:
        Three things: the calls with their units, in which outliers count as failed; for each call two sums
        of squares over the rows that are left, for `relative_error`, or None where there was nothing to
        predict; and the distance of the farthest outlier, 0 where there is none.
    """
    bring(tangent, calls[0].z.device)
    groups = _groups(units.as_before(calls))
    values = [tangent.expect(all_rows(group)) for group in groups]
    of_calls = [
        of_call
        for group, of_group in zip(groups, values, strict=True)
        for of_call in _of_each(group, of_group)
    ]
    inliers, farthest = outliers.without(calls, of_calls, rows)
    measured_calls = units.measure(inliers)
    squares: list[Squares | None] = []
    for group, of_group in zip(groups, values, strict=True):
        squares += _squares(measured_calls[len(squares) : len(squares) + len(group)], of_group)
    return measured_calls, squares, farthest


def predict_and_learn(
    tangent: Tangent, calls: Sequence[CallPairs], units: Units, outliers: Outliers, rows: int
) -> tuple[list[CallPairs], list[Squares | None], float]:
    """`predict`, then `learn`."""
    predicted = predict(tangent, calls, units, outliers, rows)
    learn(tangent, predicted[0], outliers)
    return predicted


@torch.no_grad()
def learn(tangent: Tangent, calls: Sequence[CallPairs], outliers: Outliers) -> None:
    """Let a tangent learn from the calls of a step.

    Args:
        tangent: the tangent of one box.
        calls: as `predict` gives them.
        outliers: the outliers of that box.
    """
    for group in _groups(calls):
        tangent.see(all_rows(group))
    outliers.take(calls)
    tangent.learn()


def relative_error(squares: Sequence[Squares | None]) -> float | None:
    """The root of errors over what they are measured by, of several calls together.

    Each output counts in units of its usual response, so a small one that is wrong shows.

    Returns:
        0 for a perfect prediction, 1 for one as good as predicting the mean value; infinity where a change
        was predicted and there was none; None where there was nothing to predict.
    """
    terms = [of_call for of_call in squares if of_call is not None]
    if not terms:
        return None
    error, size = (math.fsum(column) for column in zip(*terms, strict=True))
    return math.sqrt(error / size) if size else (math.inf if error else 0.0)


def _groups(calls: Sequence[CallPairs]) -> list[list[CallPairs]]:
    """The calls that a tangent is shown at once: several, as far as their rows are few."""
    groups: list[list[CallPairs]] = []
    for pairs in calls:
        size = pairs.z.numel() + (sum(call.z.numel() for call in groups[-1]) if groups else 0)
        if not groups or size > AT_ONCE:
            groups.append([])
        groups[-1].append(pairs)
    return groups


def _of_each(calls: Sequence[CallPairs], values: Tensor | None) -> Sequence[Tensor | None]:
    """Split the known values of all calls that are shown at once, call by call."""
    return [None] * len(calls) if values is None else values.split([len(pairs.z) for pairs in calls])


def _squares(calls: Sequence[CallPairs], values: Tensor | None) -> list[Squares | None]:
    """The squares of each of some calls that a tangent is shown at once."""
    if values is None:
        return [None] * len(calls)
    if len({len(pairs.z) for pairs in calls}) == 1 and all(bool(pairs.alive.all()) for pairs in calls):
        return _squares_of_calls(calls, values)
    by_call = zip(calls, _of_each(calls, values), strict=True)
    return [None if outputs is None else _squares_of_call(pairs, outputs) for pairs, outputs in by_call]


def _squares_of_calls(calls: Sequence[CallPairs], prediction: Tensor) -> list[Squares | None]:
    """The squares of calls that have equally many rows and no failed one, all at once."""
    first, rows = calls[0], len(calls[0].z)
    true = torch.stack([pairs.y for pairs in calls]).double()
    measures = [true - true.mean(dim=1, keepdim=True)] if rows > 1 else []
    if any(place is not None for place in sources(first.inputs, first.outputs)):
        previous_state = Form(first.inputs, first.outputs, ()).followed(
            torch.cat([pairs.z for pairs in calls])
        )
        measures.append(true - previous_state.view_as(true).double())
    if not measures:
        return [None] * len(calls)
    unit = first.response_scale.double()
    short = reciprocal(torch.where(unit.any(), unit, 1.0))
    differences = torch.stack([prediction.view_as(true).double() - true, *measures])
    squares = (differences * short).square().sum(dim=(2, 3)).T.tolist()
    return [(error, _least(sizes)) for error, *sizes in squares]


def _squares_of_call(pairs: CallPairs, prediction: Tensor) -> Squares | None:
    """The squares of one call: what was predicted against what it showed; None if nothing measures it."""
    places = pairs.alive.nonzero(as_tuple=True)  # a mask would be waited for at each use
    true, unit = pairs.y[places].double(), pairs.response_scale.double()
    prediction = prediction[places].double()
    unit = torch.where(unit.any(), unit, 1.0)  # none has ever varied: they are compared as they are
    measures = []
    if len(true) > 1:  # one value is its own mean
        measures.append(true - true.mean(dim=0))
    if len(true) and any(place is not None for place in sources(pairs.inputs, pairs.outputs)):
        # of a box that moves a state on, the step that it makes is what counts
        previous_state = Form(pairs.inputs, pairs.outputs, ()).followed(pairs.z)
        measures.append(true - previous_state[places].double())
    if not measures:
        return None
    differences = [prediction - true, *measures]
    error, *sizes = torch.stack(
        [(difference * reciprocal(unit)).square().sum() for difference in differences]
    ).tolist()
    return error, _least(sizes)


def _least(sizes: Sequence[float]) -> float:
    """The smallest sum of squares that is not zero, as that of equal rows around their mean is; else 0."""
    return min((size for size in sizes if size), default=0.0)
