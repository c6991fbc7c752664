"""What a step makes of its calls: pairs, trust in the tangents, what they learn, and the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from blackbox import BlackBoxFunction
from zo.evaluators.evaluator import Problem
from zo.failures import survivors
from zo.tangents import checks
from zo.tangents.step.calls import RecordedCall
from zo.tangents.step.second_pass import surrogate, without_failed
from zo.tangents.tangent import Tangent
from zo.tangents.trust.prediction_error import predict_and_learn


@dataclass(frozen=True)
class Learned:
    """What a step came to.

    Attributes:
        loss: of the base, detached: the mean over the rows that did not fail.
        gradients: of each of the chosen parameters.
        trust, trust_of_step: see `TangentGradient`.
        dropped: pairs that failed.
    """

    loss: Tensor
    gradients: tuple[Tensor, ...]
    trust: list[float | None]
    trust_of_step: float | None
    dropped: int


def learn(
    problem: Problem,
    boxes: Sequence[BlackBoxFunction],
    tangents: Sequence[Tangent],
    base: Tensor,
    calls: Sequence[RecordedCall],
    max_dropped: float,
    step: int,
) -> Learned:
    """Let the tangents predict and learn from the calls, then go back through the base with them.

    Args:
        problem: of the step.
        boxes: that were called; they are not evaluated.
        tangents: of each box.
        base: losses `(rows,)`, NaN where a row failed.
        calls: as they were recorded.
        max_dropped: the fraction of pairs that may fail.
        step: its number.

    Raises:
        FailedQueriesError: all rows of the base, or more pairs than that, failed.
        TangentError: probes changed nothing, the second evaluation is not the first again, or the gradient
            is not finite.
    """
    survived = survivors(base, step)
    calls, kept = without_failed(survived, calls, problem.batch)
    pairs, dropped = checks.checked_pairs(boxes, calls, survived, max_dropped, step)
    trust, trust_of_step = predict_and_learn(tangents, calls, pairs)
    loss, gradients = surrogate(replace(problem, batch=kept), boxes, tangents, calls, pairs, survived)
    checks.refuse_not_finite(gradients, trust, step)
    return Learned(loss, gradients, trust, trust_of_step, dropped)
