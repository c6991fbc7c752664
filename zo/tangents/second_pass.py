"""The second half of a step: the base alone, with a graph, and without the rows that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zo.batches import map_tensors
from zo.objective import Objective, losses
from zo.tangents.calls import RecordedCall


def without_failed(
    survived: Tensor,
    calls: Sequence[RecordedCall],
    batch: Any,  # noqa: ANN401
) -> tuple[list[RecordedCall], Any]:
    """Put a row that survived in the place of each that did not, for the loss to leave out.

    A NaN times a gradient of zero is a NaN; and taken out altogether, all that is drawn or shaped by the
    number of rows would change.

    Args:
        survived: `(rows,)` bool.
        calls: as they were recorded.
        batch: tensors with rows first.

    Returns:
        Calls and batch.
    """
    source = torch.arange(len(survived), device=survived.device)
    source[~survived] = torch.nonzero(survived)[0]
    kept = map_tensors(lambda tensor: tensor[source.to(tensor.device)], batch)
    return [call.on(source) for call in calls], kept


def graph(objective: Objective, network: nn.Module, batch: Any, rows: int) -> Tensor:  # noqa: ANN401
    """The objective's losses `(rows,)` with their graph."""
    results = []

    def kept(network: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        results.append(objective(network, batch))
        return results[0]

    with torch.enable_grad():
        losses(kept, network, batch, rows)  # as any other evaluation, and it checks the shape
    return results[0]
