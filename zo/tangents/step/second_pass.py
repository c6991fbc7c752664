"""The second half of a step: the base alone, with a graph, and without the rows that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from zo.batches import map_tensors
from zo.evaluators.evaluator import Problem
from zo.objective import losses
from zo.tangents.pairs import CallPairs
from zo.tangents.step.calls import RecordedCall
from zo.tangents.step.recording import routed
from zo.tangents.step.replay import Replay
from zo.tangents.tangent import Tangent


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


def surrogate(
    problem: Problem,
    boxes: Sequence[BlackBoxFunction],
    tangents: Sequence[Tangent],
    calls: Sequence[RecordedCall],
    pairs: Sequence[CallPairs],
    survived: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The objective once more, with recorded answers, and autograd through it and the tangents.

    Args:
        problem: of the step, with the batch that `without_failed` gave.
        boxes: their calls are not evaluated.
        tangents: of each box.
        calls: as that function gave them.
        pairs: of each call.
        survived: `(rows,)` bool, over which the mean is taken.

    Returns:
        The mean loss, detached, and the gradient of each of the chosen parameters.

    Raises:
        TangentError: it is not the evaluation that was recorded.
    """
    replay = Replay(boxes, calls, pairs, tangents, survived)
    with routed(boxes, replay.route):
        loss = _graph(problem)[survived].mean()
    replay.finish()
    gradients = torch.autograd.grad(
        loss, problem.parameters.tensors, allow_unused=True, materialize_grads=True
    )
    return loss.detach(), gradients


def _graph(problem: Problem) -> Tensor:
    """The objective's losses `(rows,)` with their graph."""
    results = []

    def kept(network: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        results.append(problem.objective(network, batch))
        return results[0]

    with torch.enable_grad():
        # As any other evaluation, and it checks the shape.
        losses(kept, problem.network, problem.batch, problem.rows)
    return results[0]
