"""The objective: `objective(network, batch) -> Tensor (rows,)`, one loss per row; calling and checking it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from zo.errors import ObjectiveError

Objective: TypeAlias = Callable[[nn.Module, Any], Tensor]


def losses(objective: Objective, network: nn.Module, batch: Any, rows: int) -> Tensor:  # noqa: ANN401
    """One loss per row, `(rows,)`, detached.

    Raises:
        ObjectiveError: it returned something else.
    """
    result = objective(network, batch)
    if not isinstance(result, Tensor) or result.shape != (rows,) or not result.is_floating_point():
        found = (
            f"a {str(result.dtype)[6:]} tensor of shape {tuple(result.shape)}"
            if isinstance(result, Tensor)
            else type(result).__name__
        )
        raise ObjectiveError(
            f"objective: expected one floating loss per row, a tensor of shape ({rows},), got {found}. "
            "Take the mean over all axes but the first, such as error.flatten(1).mean(dim=1)."
        )
    return result.detach()
