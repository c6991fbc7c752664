"""`ProbedGradient`: a `TangentGradient` with probes from the beginning, and with its own way to make them."""

from __future__ import annotations

from typing import Any

from torch import nn

from zo.evaluators.evaluator import Evaluator
from zo.objective import Objective
from zo.tangents.gradient import TangentGradient
from zo.tangents.step.settings import Probing


class ProbedGradient(TangentGradient):
    """A `TangentGradient` whose tangents learn from changes too: each step runs probes beside the base.

        tangent = zo.SecantTangent(zo.LowRankTangent())
        gradient = zo.ProbedGradient(network, objective, boxes=[solver], tangent=tangent, probes=2)

    It says how many probes there are and how they are made. A plain one has none, or two where its tangents
    need them, and buys more where trust is lost, made as by the defaults here. All else is the same.

    Args:
        network: the network, as for `TangentGradient`.
        objective: the objective, as for `TangentGradient`.
        probes: the number of probes while there is trust. None for 0 if all tangents learn only from values
            or not at all, and otherwise for 2.
        mu: standard deviation by which a probe moves each weight. Results hardly depend on it, because only
            the box is linearised. Responses must be distinguishable from the box's rounding and noise.
        evaluator: "stacked" runs base and probes in one call of the objective, so a box gets all their rows
            at once; "loop" runs one after another, for networks and objectives that cannot be stacked. Or
            pass `zo.evaluators.Stacked()` or `Loop()`.
        chunk: how many of base and probes run together; None for all, or 1 with several processes. Results
            are equal to the bit for equal chunks, on any number of processes.
        max_dropped: the fraction of a step's pairs that may fail before the step raises an error. Each is a
            row of a probe in one call; the other pairs teach the tangent all the same.
        **settings: as for `TangentGradient`.

    Raises:
        ConfigurationError, ParameterError: a value is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        probes: int | None = None,
        mu: float = 1e-3,
        evaluator: str | Evaluator = "stacked",
        chunk: int | None = None,
        max_dropped: float = 0.5,
        **settings: Any,
    ) -> None:
        self._probing = Probing.of(probes, mu, evaluator, chunk, max_dropped)
        super().__init__(network, objective, **settings)
