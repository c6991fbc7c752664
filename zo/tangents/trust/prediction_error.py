"""Trust: how well tangents predict responses, or values, that they have not learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from zo.tangents.pairs import CallPairs, together
from zo.tangents.step.calls import RecordedCall
from zo.tangents.tangent import Tangent

Squares = tuple[float, float]  # of errors, and of what they are measured by


@torch.no_grad()
def predict_and_learn(
    tangents: Sequence[Tangent], calls: Sequence[RecordedCall], pairs: Sequence[CallPairs]
) -> tuple[list[float | None], float | None]:
    """Let the tangents predict what a step has shown, then learn from it.

    Args:
        tangents: of each box.
        calls: of the step, in their order.
        pairs: of each call; without probes values are predicted, else responses.

    Returns:
        The relative error at each call and that of all together: 0 is a perfect prediction, 1 as good as
        predicting no response, or the mean value. None where there was nothing to predict; infinity where
        a response was predicted and there was none.
    """
    own = [tangents[call.box] for call in calls]
    squares = [_squares(tangent, seen) for tangent, seen in zip(own, pairs, strict=True)]
    for tangent, seen in zip(own, pairs, strict=True):
        tangent.see(seen)
    for place, tangent in enumerate(tangents):
        listed = [seen for call, seen in zip(calls, pairs, strict=True) if call.box == place]
        if listed:
            tangent.observe(together(listed))
    return [_ratio([each]) for each in squares], _ratio(squares)


def _squares(tangent: Tangent, pairs: CallPairs) -> Squares | None:
    """The sums of squares at a call; None where there is nothing to predict."""
    if len(pairs.d):
        if not pairs.valid.any():  # as at a call before which the network has no part
            return None
        found, true, chosen, centre = tangent.predict(pairs), pairs.response, pairs.valid, 0.0
    else:
        found, true, chosen = tangent.predict_values(pairs), pairs.y, pairs.alive
        if found is None or int(chosen.sum()) < 2:  # one value is its own mean
            return None
        centre = true[chosen].double().mean(dim=0)
    found, true = found[chosen].double(), true[chosen].double()
    return float((found - true).square().sum()), float((true - centre).square().sum())


def _ratio(squares: Sequence[Squares | None]) -> float | None:
    known = [each for each in squares if each is not None]
    error, size = (math.fsum(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
    if not known:
        return None
    return math.sqrt(error / size) if size else (math.inf if error else 0.0)
