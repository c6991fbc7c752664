"""`TangentGradient`: autograd through network and black boxes, with learned tangents for the boxes' part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.checks import check_choice
from zo.batches import count_rows
from zo.draws import Key
from zo.estimators.estimator import check_mu
from zo.evaluators.evaluator import Problem
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.evaluators.state import Snapshot
from zo.execution.ranks import fingerprint
from zo.execution.shared_rows import apart
from zo.objective import Objective
from zo.parameters import Choice, Parameters
from zo.same_run import refuse_other_run
from zo.tangents import checks
from zo.tangents.counts import TangentCounts
from zo.tangents.step.distributed import ProbeRanks
from zo.tangents.step.learning import Learned, learn
from zo.tangents.step.probes import run_probes
from zo.tangents.tangent import Tangent
from zo.tangents.trust.directional_check import agreement
from zo.tangents.trust.policy import TrustPolicy, TrustWatch


class TangentGradient:
    """Fills `.grad` of a network around black boxes, of which function values alone are used.

        solver = WakeFlow(...)
        gradient = zo.TangentGradient(network, objective, boxes=[solver], tangent=zo.LowRankTangent())
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

    Processes with the same network can share the evaluations out, for the same result:

        torch.distributed.init_process_group("gloo")  # in train.py; torchrun --nproc-per-node=3 train.py
        gradient = zo.TangentGradient(..., process_group=torch.distributed.group.WORLD)

    The gradient is biased as far as the tangent is wrong. How far that is, each step tells by predicting
    responses before it learns from them, and every few steps one more query, along the gradient, compares
    the loss with what the gradient says (batch rows in each call). When trust is lost the number of
    probes grows; see `TrustPolicy`. What decides is a held-out loss: see `KeepBest`.

    Args:
        network: several networks go in a `ModuleDict`.
        objective: `objective(network, batch) -> Tensor (rows,)`, as for `LossGradient`; it calls the
            boxes, any number of times, with torch tensors.
        boxes: those that the objective calls and gradients go through. Another box that it calls is
            evaluated in both evaluations, and no gradient passes it. Where a box is wrapped, name the
            outermost wrapper. While `backward` runs no other thread may call them.
        tangent: for each box a copy of it, or a sequence with one for each; None for
            `SecantTangent(LowRankTangent())`, see docs/learned_tangents.md for why.
        probes: how many, while there is trust; 0 where all tangents learn from values alone,
            or not at all.
        mu: standard deviation by which a probe moves each weight. Results hardly depend on it: only the
            box is linearised. Responses must stand out of its rounding and noise.
        parameters: which to train, as for `LossGradient`; all must require a gradient.
        evaluator: "stacked", base and probes in one call of the objective, so a box has all their rows at
            once; or "loop", one after another, for networks and objectives that cannot be stacked.
        seed: a probe's draws hang on (seed, step, its number) alone.
        chunk: how many of base and probes run together; None for all, or 1 where there are several
            processes. Results are equal to the bit for equal chunks, on any number of processes.
        process_group: of processes that are each given the whole batch, and have the same random state;
            "gloo" or, for GPUs, "nccl". `ProbeRanks` says what they exchange. None for this process alone.
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
        tangent: Tangent | Sequence[Tangent] | None = None,
        probes: int = 2,
        mu: float = 1e-3,
        parameters: Choice | Iterable[Choice] | None = None,
        evaluator: str = "stacked",
        seed: int = 0,
        chunk: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        max_dropped: float = 0.5,
        trust_policy: TrustPolicy = TrustPolicy(),  # noqa: B008 - frozen
    ) -> None:
        check_mu("TangentGradient", mu)
        check_choice("TangentGradient", "evaluator", evaluator, ("stacked", "loop"))
        checks.check_max_dropped(max_dropped)
        self.network = network
        self.objective = checks.checked_objective(objective)
        self.boxes = checks.checked_boxes(boxes)
        self.tangents = checks.checked_tangents(tangent, len(self.boxes))
        checks.check_probes(probes, self.tangents)
        self.mu = mu
        self.parameters = Parameters(network, parameters)
        checks.check_trainable(self.parameters)
        self.evaluator = Stacked() if evaluator == "stacked" else Loop()
        self.max_dropped = max_dropped
        self.counts = TangentCounts()
        self.trust: list[float | None] = []
        self.trust_of_step: float | None = None
        self.agreement: float | None = None
        self.watch = TrustWatch(trust_policy, probes, any(own.learns for own in self.tangents))
        self._key = Key(seed)
        self._ranks = ProbeRanks(process_group, chunk)

    def backward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Add this step's gradient to `.grad`, as autograd would.

        Args:
            batch: any nesting of tensors with rows first.

        Returns:
            The base loss, a detached number: the mean over the rows that did not fail.

        Raises:
            ObjectiveError: the batch or the losses do not have rows first, or the network cannot be stacked.
            TangentError: the objective's second evaluation is not the first again, it calls no box, probes
                change nothing, the gradient is not finite, or a process failed or has other weights.
            FailedQueriesError: all rows of the base, or more than `max_dropped` of the pairs, failed.
                In all these cases `.grad` is as it was.
        """
        step, probes, ranks = self.counts.steps, self.watch.probes, self._ranks
        before, key = Snapshot(self.network), self._key.at(step)
        alike = (key, self.mu, ranks.chunk, type(self.evaluator), vars(self.watch), self.tangents)
        ranks.refuse_others(step, lambda: fingerprint(self.network, batch, repr(alike)))
        problem = Problem(self.network, self.parameters, self.objective, batch, count_rows(batch))
        base, calls, asked = run_probes(problem, self.boxes, self.evaluator, probes, self.mu, key, ranks)
        self.counts.queries += probes
        self.counts.rows += asked

        def rest() -> tuple[Learned, tuple[float | None, TangentCounts]]:
            found = learn(problem, self.boxes, self.tangents, base, calls, self.max_dropped, step)
            self.counts.dropped += found.dropped
            agreed = None
            if ranks.rank == 0 and self.watch.policy.checks(step):
                with apart() if ranks.size > 1 else nullcontext():  # the first rank alone
                    agreed = agreement(problem, self.boxes, base, found.gradients, before, self.counts)
            return found, (agreed, self.counts)

        found, told = ranks.together(step, rest)
        self.trust, self.trust_of_step = found.trust, found.trust_of_step
        self.agreement, self.counts = told[0]  # the first rank's: it alone checks
        for tensor, gradient in zip(self.parameters.tensors, found.gradients, strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        self.counts.steps += 1
        self.watch.saw(step, self.trust_of_step, self.agreement)
        return found.loss

    @property
    def waited(self) -> float:
        """Seconds that this process has waited for the others' answers, since it was made."""
        return self._ranks.waited

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
        """Seed, chunk, counts (draws hang on the steps among them), trust, what tangents have learned."""
        return {
            "seed": self._key.seed,
            "chunk": self._ranks.chunk,
            "counts": asdict(self.counts),
            "trust": self.watch.state_dict(),
            "kinds": self._kinds(),
            "tangents": [tangent.state_dict() for tangent in self.tangents],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the same bits for equal chunks.

        Raises:
            ConfigurationError: the state is of a run with another seed or chunk, or other tangents.
        """
        self._ranks.take_chunk(state["chunk"])
        own = {"seed": self._key.seed, "tangents": ", ".join(self._kinds())}
        saved = {"seed": state["seed"], "tangents": ", ".join(state["kinds"])}
        refuse_other_run("TangentGradient", own, saved)
        self.counts = TangentCounts(**state["counts"])
        self.watch.load_state_dict(state["trust"])
        for tangent, own in zip(self.tangents, state["tangents"], strict=True):
            tangent.load_state_dict(own)

    def _kinds(self) -> list[str]:
        return [repr(tangent) for tangent in self.tangents]
