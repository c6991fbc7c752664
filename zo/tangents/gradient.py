"""`TangentGradient`: autograd through network and black boxes, with learned tangents for the boxes' part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from blackbox import BlackBoxFunction
from zo.batches import count_rows
from zo.draws import Key
from zo.estimators.estimator import check_choice, check_mu
from zo.evaluators.evaluator import Problem
from zo.evaluators.loop import Loop
from zo.evaluators.preserved import Snapshot
from zo.evaluators.stacked import Stacked
from zo.failures import survivors
from zo.objective import Objective
from zo.parameters import Choice, Parameters
from zo.tangents.checks import (
    check_max_dropped,
    check_probes,
    check_state,
    check_trainable,
    checked_boxes,
    checked_objective,
    checked_pairs,
    checked_tangents,
    refuse_not_finite,
)
from zo.tangents.counts import TangentCounts
from zo.tangents.directional_check import agreement
from zo.tangents.probes import run_probes
from zo.tangents.second_pass import surrogate, without_failed
from zo.tangents.tangent import Tangent
from zo.tangents.trust import predict_and_learn
from zo.tangents.trust_policy import TrustPolicy, TrustWatch


class TangentGradient:
    """Fills `.grad` of a network around black boxes, of which function values alone are used.

        solver = WakeFlow(...)
        gradient = zo.TangentGradient(network, objective, boxes=[solver], tangent=zo.DenseTangent(), probes=2)
        for batch in loader:
            optimizer.zero_grad()
            loss = gradient.backward(batch)
            optimizer.step()

    In a step a few copies of the network with randomly moved weights, the probes, run beside the base.
    At each call of a box the change of a probe's input and that of its output are a pair; the tangent, a
    linear model of the box, predicts and then learns from them. Then autograd runs through the base
    alone, with the tangent's vector-Jacobian product in the place of the box's: the values are the
    box's own, only the derivative is a model. What stands around the boxes must be differentiable.

    A step asks the boxes for (1 + probes) x batch rows in each call, however many weights there are. The
    objective is evaluated twice, once with all variants and once for autograd with the boxes' recorded
    answers. The second time is the ordinary forward, which updates buffers (running statistics) once.

    The gradient is biased as far as the tangent is wrong. How far that is, each step tells by predicting
    responses before it learns from them, and every few steps one more query, along the gradient, compares
    the loss with what the gradient says (batch rows in each call). When trust is lost the number of
    probes grows; see `TrustPolicy`. What decides is a held-out loss: see `HeldOut`.

    Args:
        network: several networks go in a `ModuleDict`.
        objective: `objective(network, batch) -> Tensor (rows,)`, as for `LossGradient`; it calls the
            boxes, any number of times, with torch tensors.
        boxes: those that the objective calls and gradients go through. Another box that it calls is
            evaluated in both evaluations, and no gradient passes it. Where a box is wrapped, name the
            outermost wrapper. While `backward` runs no other thread may call them.
        tangent: for each box a copy of it, or a sequence with one for each.
        probes: how many, while there is trust; 0 where all tangents learn from values alone.
        mu: standard deviation by which a probe moves each weight. Results hardly depend on it: only the
            box is linearised. Responses must stand out of its rounding and noise.
        parameters: which to train, as for `LossGradient`; all must require a gradient.
        evaluator: "stacked", base and probes in one call of the objective, so a box has all their rows at
            once; or "loop", one after another, for networks and objectives that cannot be stacked.
        seed: all draws hang on (seed, step) alone.
        max_dropped: the fraction of a step's pairs that may fail before the step is an error.
        trust_policy: when trust is lost, and what that may cost.

    Failed rows: those whose loss is not finite in the base are taken out of loss and gradient; a row that
    fails in a probe drops its pair, and one that fails in a check drops the check.

    Attributes:
        tangents: of each box.
        trust: for each call of the last step the relative error of the tangent's prediction of responses
            that it had not learned from: 0 is perfect, 1 no better than predicting no response. None for a
            call whose inputs do not depend on the weights. `trust_of_step` is that of all calls together.
            Without probes it is the error of predicted outputs, and 1 is no better than their mean.
        agreement: in the last step, the change of the loss along the gradient over what the gradient says:
            1 is right, 0 or less would not descend. None where it was not checked.
        watch: the running mean of the trust, whether it is lost, and the number of probes of the next step.
        counts: see `TangentCounts`.

    Raises:
        ConfigurationError, ParameterError: a value out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        boxes: Sequence[BlackBoxFunction],
        tangent: Tangent | Sequence[Tangent],
        probes: int = 2,
        mu: float = 1e-3,
        parameters: Choice | Iterable[Choice] | None = None,
        evaluator: str = "stacked",
        seed: int = 0,
        max_dropped: float = 0.5,
        trust_policy: TrustPolicy = TrustPolicy(),  # noqa: B008 - frozen
    ) -> None:
        check_mu("TangentGradient", mu)
        check_choice("TangentGradient", "evaluator", evaluator, ("stacked", "loop"))
        check_max_dropped(max_dropped)
        self.network = network
        self.objective = checked_objective(objective)
        self.boxes = checked_boxes(boxes)
        self.tangents = checked_tangents(tangent, len(self.boxes))
        check_probes(probes, self.tangents)
        self.mu = mu
        self.parameters = Parameters(network, parameters)
        check_trainable(self.parameters)
        self.evaluator = Stacked() if evaluator == "stacked" else Loop()
        self.max_dropped = max_dropped
        self.counts = TangentCounts()
        self.trust: list[float | None] = []
        self.trust_of_step: float | None = None
        self.agreement: float | None = None
        self.watch = TrustWatch(trust_policy, probes, any(own.learns for own in self.tangents))
        self._key = Key(seed)

    def backward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Add this step's gradient to `.grad`, as autograd would.

        Args:
            batch: any nesting of tensors with rows first.

        Returns:
            The base loss, a detached number: the mean over the rows that did not fail.

        Raises:
            ObjectiveError: the batch or the losses do not have rows first, or the network cannot be stacked.
            TangentError: the objective's second evaluation is not the first again, it calls no box, probes
                change nothing, or the gradient is not finite.
            FailedQueriesError: all rows of the base, or more than `max_dropped` of the pairs, failed.
                In all these cases `.grad` is as it was.
        """
        step, probes, before = self.counts.steps, self.watch.probes, Snapshot(self.network)
        problem = Problem(self.network, self.parameters, self.objective, batch, count_rows(batch))
        base, calls, asked = run_probes(
            problem, self.boxes, self.evaluator, probes, self.mu, self._key.at(step)
        )
        self.counts.queries += probes
        self.counts.rows += asked
        survived = survivors(base, step)
        calls, kept = without_failed(survived, calls, batch)
        pairs, failed = checked_pairs(self.boxes, calls, survived, self.max_dropped, step)
        self.counts.dropped += failed
        self.trust, self.trust_of_step = predict_and_learn(self.tangents, calls, pairs)
        alone = replace(problem, batch=kept)
        loss, gradients = surrogate(alone, self.boxes, self.tangents, calls, pairs, survived)
        refuse_not_finite(gradients, self.trust, step)
        self.agreement = None
        if self.watch.policy.checks(step):
            self.agreement = agreement(problem, self.boxes, base, gradients, before, self.counts)
        for tensor, gradient in zip(self.parameters.tensors, gradients, strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        self.counts.steps += 1
        self.watch.saw(step, self.trust_of_step, self.agreement)
        return loss

    def queries(self) -> int:
        """What the next step will cost: perturbed objectives, the base evaluation not counted."""
        return self.watch.probes + self.watch.policy.checks(self.counts.steps)

    def metrics(self) -> dict[str, float]:
        """Trust of the last step, in all and by call (from 1 on), its check, and the probes of the next."""
        by_name = {"tangent_error": self.trust_of_step}
        by_name |= {f"tangent_error_call_{call}": error for call, error in enumerate(self.trust, start=1)}
        by_name |= {"tangent_agreement": self.agreement, "tangent_probes": self.watch.probes}
        return {name: error for name, error in by_name.items() if error is not None}

    def state_dict(self) -> dict[str, Any]:
        """Seed, counts (the draws hang on the steps among them), trust, and what tangents have learned."""
        return {
            "seed": self._key.seed,
            "counts": asdict(self.counts),
            "trust": self.watch.state_dict(),
            "kinds": self._kinds(),
            "tangents": [tangent.state_dict() for tangent in self.tangents],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the same bits.

        Raises:
            ConfigurationError: the state is of a run with another seed, or other tangents.
        """
        check_state((self._key.seed, state["seed"]), (self._kinds(), state["kinds"]))
        self.counts = TangentCounts(**state["counts"])
        self.watch.load_state_dict(state["trust"])
        for tangent, own in zip(self.tangents, state["tangents"], strict=True):
            tangent.load_state_dict(own)

    def _kinds(self) -> list[str]:
        return [repr(tangent) for tangent in self.tangents]
