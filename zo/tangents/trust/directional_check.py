"""The directional check: does the loss change along the surrogate gradient as that gradient says?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from zo.evaluators.evaluator import Problem, mean_changes
from zo.evaluators.loop import loop_losses
from zo.evaluators.state import Snapshot
from zo.perturbation import Directions
from zo.tangents.counts import TangentCounts
from zo.tangents.step.recording import Counter, routed

FORETOLD = 1e-3  # of the loss: the change along the gradient that the query is made for


@torch.no_grad()
def agreement(
    problem: Problem,
    boxes: Sequence[BlackBoxFunction],
    base: Tensor,
    gradients: Sequence[Tensor],
    before: Snapshot,
    counts: TangentCounts,
) -> float | None:
    """[L(theta + h g / |g|) - L(theta)] / (h |g|), by one query with the masks that the base drew.

    h is such that g foretells a change by a thousandth of the loss. In float32 that is some 1e4 units of
    the loss's rounding. A probe's length, mu sqrt(d), is far too long: a probe's direction is random, and
    hardly any of it changes the loss, while along g all does, and what is measured is the curvature: for
    true gradients changes 2 to 4 times those foretold on the wake flow, and up to 50 times on a chaotic
    system. The way is uphill, where near a minimum curvature adds to the change instead of hiding it.

    Args:
        problem: of the step.
        boxes: whose rows are counted.
        base: losses `(rows,)`, NaN where a row failed.
        gradients: g, tensor by tensor.
        before: buffers and generators as the base found them.
        counts: where the check and its rows are added.

    Returns:
        1 for the true gradient; None where it cannot be told: g is zero, or a row failed here that did not
        in the base, so that the gradient is one of more rows than were compared.
    """
    after, parameters = Snapshot(problem.network), problem.parameters
    flat = torch.cat([gradient.reshape(-1).to("cpu", torch.float64) for gradient in gradients])
    slope = float(flat.norm())
    size = float(base[torch.isfinite(base)].double().abs().mean())
    if not slope or not size:
        return None
    length = FORETOLD * size / slope
    direction = Directions((length / slope * flat).to(parameters.dtype)[None])
    counter = Counter(boxes)
    before.restore()
    try:
        with routed(boxes, counter.route):
            moved = loop_losses(problem, direction, Snapshot(problem.network))
    finally:
        after.restore()
        counts.rows += counter.asked
    change, valid = mean_changes(base, moved - base)
    counts.checks += 1
    counts.failed_checks += int(not valid)
    return float(change) / (length * slope) if bool(valid) else None
