"""Blocks of a batch's rows: how a batch is cut, and which networks it cannot be cut for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zo.batches import map_tensors
from zo.errors import ConfigurationError, ObjectiveError
from zo.evaluators.evaluator import Problem
from zo.evaluators.preserved import Snapshot
from zo.objective import Closed, Objective, losses

ALONE = 1e-3  # of a loss: what a row's may change by at most when others are taken away


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Some rows of a step's batch.

    Attributes:
        problem: the step's, on these rows.
        base: their losses, `(rows,)`, NaN where one failed.
        weight: of their mean change in that of all rows: the share of the rows that survived.
    """

    problem: Problem
    base: Tensor
    weight: float

    @property
    def survivors(self) -> int:
        """Rows that did not fail in the base."""
        return int(torch.isfinite(self.base).sum())


def whole(problem: Problem, base: Tensor) -> tuple[RowBlock, ...]:
    """All rows as one block."""
    return (RowBlock(problem, base, 1.0),)


def cut(problem: Problem, base: Tensor, rows: int) -> tuple[RowBlock, ...]:
    """Blocks of so many rows, the last with what is left."""
    survived = int(torch.isfinite(base).sum())
    found = []
    for start in range(0, problem.rows, rows):
        part = base[start : start + rows]
        batch = rows_of(problem.batch, start, start + rows)
        own = replace(problem, batch=batch, rows=len(part))
        found.append(RowBlock(own, part, int(torch.isfinite(part).sum()) / survived))
    return tuple(found)


def rows_of(batch: Any, start: int, stop: int) -> Any:  # noqa: ANN401
    """Some rows of a batch."""
    return map_tensors(lambda tensor: tensor[start:stop], batch)


def losses_by_block(
    objective: Objective,
    network: nn.Module,
    batch: Any,  # noqa: ANN401
    count: int,
    rows: int,
    *,
    check: bool,
) -> Tensor:
    """Losses of the base, `(count,)`, each block evaluated by itself, as its queries will be.

    Args:
        objective: of the step.
        network: likewise.
        batch: likewise.
        count: rows of the batch.
        rows: of a block.
        check: whether the whole batch is evaluated as well, to see that rows do not interact.

    Raises:
        ConfigurationError: rows interact, or a forward changes buffers or draws random numbers.
    """
    if isinstance(objective, Closed):
        raise ConfigurationError(
            "LossGradient, row_block: expected an objective(network, batch), whose batch can be cut, got a "
            "closure. Leave row_block out."
        )
    refuse_batch_statistics(network)
    before = Snapshot(network)
    generators, buffers = _generators(), _buffers(network)
    pieces = [
        losses(objective, network, rows_of(batch, start, start + rows), min(rows, count - start))
        for start in range(0, count, rows)
    ]
    moved = _buffers(network)
    changed = [name for name, own in moved.items() if name not in buffers or _differ(own, buffers[name])]
    drawn = any(not torch.equal(*pair) for pair in zip(generators, _generators(), strict=False))
    before.restore()
    if changed or drawn:
        what = f"writes to {changed[0]}" if changed else "draws random numbers (dropout)"
        raise ConfigurationError(
            "LossGradient, row_block: expected a forward that does the same to a row in any batch, got one "
            f"that {what}. Use network.eval(), or leave row_block out: then workers share out queries alone."
        )
    base = torch.cat(pieces)
    if check and count > rows:
        _refuse_interaction(objective, network, batch, base)
    return base


def refuse_batch_statistics(network: nn.Module) -> None:
    """Refuse networks whose layers take a mean over the rows.

    Raises:
        ConfigurationError: naming the layer.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ConfigurationError(
                f"LossGradient, row_block: expected rows that do not interact, got {name or 'the network'} "
                f"({type(module).__name__}), which takes statistics over the batch. Put it in evaluation "
                "mode, take GroupNorm or LayerNorm, or leave row_block out: workers then share out queries."
            )


def _refuse_interaction(objective: Objective, network: nn.Module, batch: Any, base: Tensor) -> None:  # noqa: ANN401
    """Rows by blocks must come to what they come to together, up to rounding and a box's noise."""
    together = losses(objective, network, batch, len(base))
    rows = torch.isfinite(base) & torch.isfinite(together)
    if not rows.any():
        return
    off, largest = (together - base)[rows].abs().max(), base[rows].abs().max()
    if off <= ALONE * largest:
        return
    again = losses(objective, network, batch, len(base))
    noise = (again - together)[rows].abs().nan_to_num(0.0).max()
    if off > 10 * noise:
        raise ObjectiveError(
            f"LossGradient, row_block: expected a row's loss not to hang on the rows beside it, got one that "
            f"changes by {off.item():.1e} of {largest.item():.1e} when its block is evaluated alone. Leave "
            "row_block out: then workers share out queries alone."
        )


def _generators() -> list[Tensor]:
    """States of torch's generators, the CPU's first; a GPU's is there once something has used it."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: copy.deepcopy(buffer.detach()) for name, buffer in network.named_buffers()}


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num())


def parts_of_first(blocks: Sequence[RowBlock]) -> list[float]:
    """Rows of each block over those of the first, which what a piece costs goes with."""
    return [block.problem.rows / blocks[0].problem.rows for block in blocks]
