"""`TangentGradient`: autograd through network and black boxes, with learned tangents for the boxes' part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from zo.batches import count_rows
from zo.draws import Key
from zo.errors import ConfigurationError, TangentError
from zo.estimators.estimator import check_choice, check_count, check_mu
from zo.evaluators.evaluator import Problem
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.failures import survivors
from zo.objective import Objective
from zo.parameters import Choice, Parameters
from zo.tangents.calls import RecordedCall
from zo.tangents.checks import (
    check_max_dropped,
    check_trainable,
    checked_boxes,
    checked_objective,
    checked_tangents,
    refuse_failed_pairs,
    refuse_unmoved,
)
from zo.tangents.counts import TangentCounts
from zo.tangents.pairs import CallPairs, together
from zo.tangents.probes import run_probes
from zo.tangents.recording import routed
from zo.tangents.replay import Replay
from zo.tangents.second_pass import graph, without_failed
from zo.tangents.tangent import Tangent
from zo.tangents.trust import relative_error


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

    The gradient is biased as far as the tangent is wrong; `trust` tells how far that is.

    Args:
        network: several networks go in a `ModuleDict`.
        objective: `objective(network, batch) -> Tensor (rows,)`, as for `LossGradient`; it calls the
            boxes, any number of times, with torch tensors.
        boxes: those that the objective calls and gradients go through. Another box that it calls is
            evaluated in both evaluations, and no gradient passes it. Where a box is wrapped, name the
            outermost wrapper. While `backward` runs no other thread may call them.
        tangent: for each box a copy of it, or a sequence with one for each.
        probes: how many.
        mu: standard deviation by which a probe moves each weight. Results hardly depend on it: only the
            box is linearised. Responses must stand out of its rounding and noise.
        parameters: which to train, as for `LossGradient`; all must require a gradient.
        evaluator: "stacked", base and probes in one call of the objective, so a box has all their rows at
            once; or "loop", one after another, for networks and objectives that cannot be stacked.
        seed: all draws hang on (seed, step) alone.
        max_dropped: the fraction of a step's pairs that may fail before the step is an error.

    Failed rows: those whose loss is not finite in the base are taken out of loss and gradient; a row that
    fails in a probe drops its pair.

    Attributes:
        tangents: of each box.
        trust: for each call of the last step the relative error of the tangent's prediction of responses
            that it had not learned from: 0 is perfect, 1 no better than predicting no response. None for a
            call whose inputs do not depend on the weights. `trust_of_step` is that of all calls together.
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
    ) -> None:
        check_count("TangentGradient", "probes", probes)
        check_mu("TangentGradient", mu)
        check_choice("TangentGradient", "evaluator", evaluator, ("stacked", "loop"))
        check_max_dropped(max_dropped)
        self.network = network
        self.objective = checked_objective(objective)
        self.boxes = checked_boxes(boxes)
        self.tangents = checked_tangents(tangent, len(self.boxes))
        self.probes = probes
        self.mu = mu
        self.parameters = Parameters(network, parameters)
        check_trainable(self.parameters)
        self.evaluator = Stacked() if evaluator == "stacked" else Loop()
        self.max_dropped = max_dropped
        self.counts = TangentCounts()
        self.trust: list[float | None] = []
        self.trust_of_step: float | None = None
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
        rows, step = count_rows(batch), self.counts.steps
        problem = Problem(self.network, self.parameters, self.objective, batch, rows)
        base, calls, asked = run_probes(
            problem, self.boxes, self.evaluator, self.probes, self.mu, self._key.at(step)
        )
        self.counts.queries += self.probes
        self.counts.rows += asked
        survived = survivors(base, step)
        calls, kept = without_failed(survived, calls, batch)
        pairs = [call.pairs(self.boxes[call.box], survived) for call in calls]
        failed = torch.cat([call.failed(survived).flatten() for call in calls])
        self.counts.dropped += int(failed.sum())
        refuse_failed_pairs(failed, self.max_dropped, step)
        refuse_unmoved(pairs, step)
        replay = Replay(self.boxes, calls, pairs, self.tangents, survived)
        with routed(self.boxes, replay.route):
            loss = graph(self.objective, self.network, kept, rows)[survived].mean()
        replay.finish()
        self._learn(calls, pairs)
        gradients = torch.autograd.grad(
            loss, self.parameters.tensors, allow_unused=True, materialize_grads=True
        )
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise TangentError(
                f"Step {step}: expected a finite gradient, got NaN or infinity. Relative errors of the "
                f"tangents by call: {self.trust}. See where errors above 1 come from; more probes, a larger "
                "ridge or another tangent mend them."
            )
        for tensor, gradient in zip(self.parameters.tensors, gradients, strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        self.counts.steps += 1
        return loss.detach()

    def queries(self) -> int:
        """What a step will cost: perturbed objectives, the base evaluation not counted."""
        return self.probes

    def metrics(self) -> dict[str, float]:
        """The trust of the last step, in all and by call (from 1 on), as a run's metrics take it."""
        by_name = {"tangent_error": self.trust_of_step}
        by_name |= {f"tangent_error_call_{call}": error for call, error in enumerate(self.trust, start=1)}
        return {name: error for name, error in by_name.items() if error is not None}

    def state_dict(self) -> dict[str, Any]:
        """Seed, counts (the draws hang on the steps among them), and what the tangents have learned."""
        return {
            "seed": self._key.seed,
            "counts": asdict(self.counts),
            "kinds": self._kinds(),
            "tangents": [tangent.state_dict() for tangent in self.tangents],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the same bits.

        Raises:
            ConfigurationError: the state is of a run with another seed, or other tangents.
        """
        expected, found = (
            f"seed {seed} and tangents {', '.join(kinds)}"
            for seed, kinds in ((self._key.seed, self._kinds()), (state["seed"], state["kinds"]))
        )
        if expected != found:
            raise ConfigurationError(
                f"TangentGradient: expected the state of a run with {expected}, got one with {found}. "
                "Make the gradient like that one, or start anew."
            )
        self.counts = TangentCounts(**state["counts"])
        for tangent, own in zip(self.tangents, state["tangents"], strict=True):
            tangent.load_state_dict(own)

    def _kinds(self) -> list[str]:
        return [repr(tangent) for tangent in self.tangents]

    @torch.no_grad()
    def _learn(self, calls: Sequence[RecordedCall], pairs: Sequence[CallPairs]) -> None:
        """Let the tangents predict the responses, then learn from them."""
        predictions = [self.tangents[call.box].predict(own) for call, own in zip(calls, pairs, strict=True)]
        self.trust = [relative_error([p], [q]) for p, q in zip(pairs, predictions, strict=True)]
        self.trust_of_step = relative_error(pairs, predictions)
        for place, tangent in enumerate(self.tangents):
            own = [seen for call, seen in zip(calls, pairs, strict=True) if call.box == place]
            if own:
                tangent.observe(together(own))
