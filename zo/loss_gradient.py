"""`LossGradient`: the gradient of a network's weights, from values of the objective alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zo.batches import count_rows
from zo.draws import Key
from zo.errors import ConfigurationError, FailedQueriesError
from zo.estimators.estimator import Estimator, check_count
from zo.evaluators.evaluator import Evaluator, Problem, differences
from zo.evaluators.loop import Loop
from zo.evaluators.preserved import Snapshot
from zo.evaluators.stacked import Stacked
from zo.evaluators.verified import Verified
from zo.objective import Objective, losses
from zo.parameters import Parameters
from zo.perturbation import Perturbations


@dataclass
class QueryCounts:
    """What a `LossGradient` has spent: base evaluations and queries, of which some were dropped.

    Attributes:
        steps: calls of `backward`, each with one base evaluation.
        queries: perturbed objectives, those of the first-use check included.
        dropped: queries left out because rows failed.
    """

    steps: int = 0
    queries: int = 0
    dropped: int = 0


class LossGradient:
    """Fills `.grad` of a network from values of an objective that cannot be differentiated.

        gradient = zo.LossGradient(network, objective, zo.CoordinateWise(mu=1e-3), seed=0)
        for batch in loader:
            optimizer.zero_grad()
            loss = gradient.backward(batch)
            optimizer.step()

    The base evaluation updates buffers (running statistics) once, as an ordinary forward would;
    queries never do. Random layers draw the same masks in the base and in all queries of a step.

    Args:
        network: several networks go in a `ModuleDict`.
        objective: `objective(network, batch) -> Tensor (rows,)`, one loss per row. `batch` is any
            nesting of tensors with rows first; rows may interact, as in batch norm. It may call
            black boxes; a row that fails there (NaN, with `failures="keep"`) is handled as below.
        estimator: the query plan.
        parameters: names or patterns (`"*.weight"`) of those to perturb; None for all that require
            a gradient.
        evaluator: "loop", one query at a time; "stacked", a chunk of queries in one pass; "auto",
            the fastest that serves the objective; or an `Evaluator` of your own. The fast ones that
            are chosen by name are checked against loop on first use.
        seed: all draws hang on (seed, step) alone.
        chunk: how many queries run together; memory grows with chunk x rows. Results are equal to
            the bit only for equal chunks.
        max_dropped: the fraction of a step's queries that may fail before the step is an error.

    Failed rows (losses that are not finite): those of the base are taken out of every variant; a query
    in which a further row fails is dropped. CGE leaves its coordinate at zero, RGE takes the mean over
    the rest.

    Raises:
        ConfigurationError, ParameterError: a value out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        estimator: Estimator[Any],
        *,
        parameters: Iterable[str] | None = None,
        evaluator: str | Evaluator = "auto",
        seed: int = 0,
        chunk: int = 128,
        max_dropped: float = 0.1,
    ) -> None:
        check_count("LossGradient", "chunk", chunk)
        if not 0 <= max_dropped <= 1:
            raise ConfigurationError(
                f"LossGradient, max_dropped: expected a fraction in [0, 1], got {max_dropped!r}."
            )
        self.network = network
        self.objective = objective
        self.estimator = estimator
        self.parameters = Parameters(network, parameters)
        self.evaluator = _evaluator(evaluator)
        self.chunk = chunk
        self.max_dropped = max_dropped
        self.counts = QueryCounts()
        self._key = Key(seed)

    @torch.no_grad()
    def backward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Add this step's gradient estimate to `.grad`, as autograd would.

        Args:
            batch: any nesting of tensors with rows first.

        Returns:
            The base loss, a detached number: the mean over the rows that did not fail.

        Raises:
            ObjectiveError: the batch or the losses do not have rows first.
            FailedQueriesError: all rows of the base, or more than `max_dropped` of the queries, failed;
                `.grad` is as it was.
        """
        rows = count_rows(batch)
        problem = Problem(self.network, self.parameters, self.objective, batch, rows)
        before = Snapshot(self.network)
        base = losses(self.objective, self.network, batch, rows)
        after = Snapshot(self.network)
        survived = torch.isfinite(base)
        if not survived.any():
            raise FailedQueriesError(
                f"Step {self.counts.steps}: expected a finite loss in some row of the base evaluation, got "
                f"none in {rows} rows. Evaluate the objective by hand on this batch to see why."
            )
        plan = self.estimator.plan(self.parameters, self._key.at(self.counts.steps))
        before.restore()  # queries start from the state that the base started from
        try:
            difference, valid = self._differences(problem, plan, base)
        finally:
            after.restore()
        self._refuse_too_many_failures(valid)
        self.parameters.add_to_grad(self.estimator.reduce(plan, difference, valid))
        self.counts.steps += 1
        return base[survived].mean()

    def queries(self) -> int:
        """What a step will cost: perturbed objectives, the base evaluation not counted."""
        return self.estimator.queries(self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Seed, counts (the draws hang on the steps among them), and the evaluator's choice."""
        return {
            "seed": self._key.seed,
            "counts": asdict(self.counts),
            "evaluator": self.evaluator.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: the state is of a run with another seed.
        """
        if state["seed"] != self._key.seed:
            raise ConfigurationError(
                f"LossGradient: expected the state of a run with seed {self._key.seed}, got one with "
                f"{state['seed']}. Make the gradient with that seed, or start anew."
            )
        self.counts = QueryCounts(**state["counts"])
        self.evaluator.load_state_dict(state["evaluator"])

    def _differences(self, problem: Problem, plan: Perturbations, base: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for start in range(0, plan.queries, self.chunk):
            perturbation = plan.chunk(start, min(start + self.chunk, plan.queries))
            parts.append(differences(base, self.evaluator.losses(problem, perturbation)))
        difference, valid = (torch.cat(column) for column in zip(*parts, strict=True))
        self.counts.queries += plan.queries + self.evaluator.take_queries()
        self.counts.dropped += int((~valid).sum())
        return difference, valid

    def _refuse_too_many_failures(self, valid: Tensor) -> None:
        dropped = int((~valid).sum())
        if dropped > self.max_dropped * len(valid) or dropped == len(valid):
            raise FailedQueriesError(
                f"Step {self.counts.steps}: expected at most {self.max_dropped:.0%} of {len(valid)} queries "
                f"to fail, {dropped} did. See the black box's ledger; a smaller mu or learning rate keeps "
                "variants nearer to the base, max_dropped lets more of them go."
            )


def _evaluator(chosen: str | Evaluator) -> Evaluator:
    if isinstance(chosen, Evaluator):
        return chosen
    if chosen == "loop":
        return Loop()
    if chosen in ("auto", "stacked"):
        return Verified(Stacked())
    raise ConfigurationError(
        f"LossGradient, evaluator: expected 'auto', 'loop', 'stacked' or an Evaluator, got {chosen!r}."
    )
