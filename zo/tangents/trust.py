"""Trust: how well tangents predict responses that they have not learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from zo.tangents.pairs import CallPairs


def relative_error(pairs: Sequence[CallPairs], predictions: Sequence[Tensor]) -> float | None:
    """Root of the squared error over the squared responses, over all valid pairs of some calls.

    0 is a perfect prediction, 1 as good as predicting no response, above it worse than that.

    Args:
        pairs: of the calls.
        predictions: of the responses, `(probes, rows, size_out)` for each call.

    Returns:
        None where there are no pairs, as at a call before which the network has no part; infinity where a
        response to a change was predicted and there was none.
    """
    error = size = 0.0
    count = 0
    for call, predicted in zip(pairs, predictions, strict=True):
        response = call.response[call.valid].double()
        error += float((predicted[call.valid].double() - response).square().sum())
        size += float(response.square().sum())
        count += len(response)
    if not count:
        return None
    return math.sqrt(error / size) if size else (math.inf if error else 0.0)
