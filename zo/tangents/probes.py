"""The first half of a step: base and probes run together, and the calls of the boxes are recorded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from zo.draws import Key
from zo.errors import TangentError
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.stacked import Stacked
from zo.perturbation import Directions
from zo.tangents.calls import RecordedCall
from zo.tangents.recording import Recorder, routed
from zo.tangents.unseen_weights import refuse_unseen_weights

PROBES = 301  # first word of the key's path for these draws


@torch.no_grad()
def run_probes(
    problem: Problem,
    boxes: Sequence[BlackBoxFunction],
    evaluator: Evaluator,
    probes: int,
    mu: float,
    key: Key,
) -> tuple[Tensor, list[RecordedCall], int]:
    """Evaluate the objective with the network as it is and with `probes` randomly moved copies of it.

    Args:
        problem: of the step.
        boxes: whose calls are recorded.
        evaluator: `Stacked` or `Loop`; a direction of zero is the base.
        probes: how many.
        mu: standard deviation of the moves.
        key: of the step.

    Returns:
        The losses of the base `(rows,)`, NaN where a row failed; the calls in their order; and the number
        of rows that the boxes were asked for.

    Raises:
        TangentError: the calls of different variants cannot be told apart, or there are none; or, at the
            first step, stacked probes do not move a weight that a box's input hangs on.
    """
    size, dtype = problem.parameters.size, problem.parameters.dtype
    moves = mu * torch.randn(probes, size, generator=key.generator(PROBES), dtype=dtype)
    directions = Directions(torch.cat([torch.zeros(1, size, dtype=dtype), moves]))
    recorder = Recorder(boxes)
    with routed(boxes, recorder.route):
        losses = evaluator.losses(problem, directions)
    split = recorder.stacked if isinstance(evaluator, Stacked) else recorder.one_by_one
    calls = split(1 + probes)
    if not calls:
        raise TangentError(
            f"objective: expected a call of a box in {list(boxes)}, got none. Name in boxes the very objects "
            "that the objective calls; without a box, use autograd."
        )
    if probes and key.step == 0 and isinstance(evaluator, Stacked):  # what it finds does not change
        refuse_unseen_weights(problem, boxes, calls, losses[0].isfinite())
    return losses[0], calls, recorder.asked
