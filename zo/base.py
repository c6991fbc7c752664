"""The base evaluation of a step: the objective at the weights as they are, before any query."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zo.autocast import autocast_refused
from zo.batches import count_rows
from zo.distributed.row_blocks import losses_by_block
from zo.errors import ObjectiveError
from zo.evaluators.memory import measured
from zo.objective import Closed, Objective, losses
from zo.parameters import Parameters


def base_losses(
    objective: Objective,
    network: nn.Module,
    parameters: Parameters,
    batch: Any,  # noqa: ANN401
    row_block: int | None,
    *,
    measure: bool,
    first: bool,
    check_blocks: bool,
) -> tuple[Tensor, int]:
    """Losses of the base, as queries will be evaluated.

    Args:
        objective: of the step.
        network: likewise; its buffers are updated, as by an ordinary forward.
        parameters: that will be perturbed.
        batch: any nesting of tensors with rows first; None for a closure.
        row_block: rows that are evaluated at a time; None for all together.
        measure: whether to see how much memory it takes.
        first: whether to look for autocast inside the network too.
        check_blocks: whether to see that a row's loss does not hang on the rows of other blocks.

    Returns:
        Losses `(rows,)`, NaN where a row failed; and the bytes that they took at the peak, 0 if not measured.

    Raises:
        ObjectiveError: the batch or the losses do not have rows first; a batch for a closure; or the network
            runs under autocast.
        ConfigurationError: rows interact, and cannot be cut into blocks.
    """
    rows = None
    if not isinstance(objective, Closed):
        rows = count_rows(batch)
    elif batch is not None:
        raise ObjectiveError(
            f"objective: expected no batch for a closure without arguments, got {type(batch).__name__}. "
            "Call backward() with none, or make it an objective(network, batch)."
        )
    with autocast_refused(parameters, inside=first), measured(measure) as peak:
        if row_block is None:
            base = losses(objective, network, batch, rows)
        else:
            base = losses_by_block(objective, network, batch, rows or 0, row_block, check=check_blocks)
    return base, peak.peak
