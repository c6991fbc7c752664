"""The first-use check: a fast evaluator must agree with `loop`, or `loop` takes its place."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blackbox import BudgetError
from zo.errors import EvaluatorWarning
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.loop import Loop
from zo.evaluators.variant_forward import NotStackable
from zo.perturbation import Coordinates, Directions, Perturbation

STEP = 1e-2  # of the check, far above mu: here the change of the loss must stand out of its rounding
RELATIVE = 2e-3  # of that change; the two differ by rounding alone
ROUNDING = 200  # units in the last place of the loss


class Verified(Evaluator):
    """A fast evaluator that is compared with `Loop` on first use, on a few queries of each layer.

    A disagreement, or an error in the fast evaluator, names the parameter, warns once and leaves the
    work to `Loop`: a wrong gradient is worse than a slow one. So does a weight that is read where the
    fast one cannot see it, which need not show in a few losses. The rows of the check are counted like
    any others.

    It is made for coordinates and for directions, in training and in evaluation mode apart, since they
    take different ways through a fast evaluator.

    Attributes:
        active: the evaluator in use for each of these, by its name; empty before the first.
        queries: perturbed objectives that the check cost and that no one has taken into account yet.
    """

    def __init__(self, fast: Evaluator) -> None:
        self.fast = fast
        self.active: dict[str, Evaluator] = {}
        self.queries = 0

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`."""
        kind = f"{type(perturbation).__name__}, {'training' if problem.network.training else 'evaluation'}"
        if kind not in self.active:
            self.active[kind] = self._choose(problem, perturbation)
        try:
            return self.active[kind].losses(problem, perturbation)
        except NotStackable as error:  # a batch of another shape than the one that was checked
            self.active[kind] = _fall_back(self.fast, f"could not run ({error})")
            return self.active[kind].losses(problem, perturbation)

    def bytes_per_query(self, problem: Problem, perturbation: Perturbation, base: int) -> int:
        """Those of the fast one."""
        return self.fast.bytes_per_query(problem, perturbation, base)

    def state_dict(self) -> dict[str, Any]:
        """Which were chosen: a resumed run neither pays for the check again nor changes evaluators."""
        return {"active": {kind: type(evaluator).__name__ for kind, evaluator in self.active.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the choice of `state_dict`."""
        known = {type(evaluator).__name__: evaluator for evaluator in (Loop(), self.fast)}
        # One that is not known here is chosen anew.
        self.active = {kind: known[name] for kind, name in state["active"].items() if name in known}

    def take_queries(self) -> int:
        """Queries that the check has cost since this was last asked."""
        taken, self.queries = self.queries, 0
        return taken

    def _choose(self, problem: Problem, perturbation: Perturbation) -> Evaluator:
        samples = _samples(problem, perturbation)
        # No more at a time than the work itself takes; but one variant, or two alike, mix with no other.
        size = max(3, len(perturbation))
        # The first two move nothing: their difference is the noise of the objective itself.
        truth = Loop().losses(problem, samples.perturbation)
        self.queries += len(truth)
        try:
            found = torch.cat(
                [
                    self.fast.losses(problem, samples.perturbation.part(start, start + size))
                    for start in range(0, len(samples.perturbation), size)
                ]
            )
            self.queries += len(found)
        except BudgetError:
            raise
        except Exception as error:  # whatever it is, loop has just shown that the objective works
            return _fall_back(self.fast, f"raised {type(error).__name__} ({error})")
        noise = (truth[0] - truth[1]).abs().nan_to_num(0.0).max()
        # A loss may be summed in float64 behind a network in float32.
        eps = max(torch.finfo(dtype).eps for dtype in (truth.dtype, problem.parameters.tensors[0].dtype))
        scale = ROUNDING * eps * truth[0].abs() + 10 * noise
        allowed = RELATIVE * (truth - truth[0]).abs() + scale
        lost = ~torch.isfinite(found) & torch.isfinite(truth)
        # A row that fails in one of them is a failed row, not a fault; most rows of a query are one.
        # One that failed in the base has no change to be compared by.
        comparable = torch.isfinite(found) & torch.isfinite(truth) & torch.isfinite(truth[0])
        close = ((found - truth).abs() <= allowed) | ~comparable
        right = close.all(dim=1) & (lost.double().mean(dim=1) <= 0.5)
        if not right.all():
            names = sorted({samples.names[query] for query in torch.nonzero(~right).flatten().tolist()})
            return _fall_back(self.fast, f"disagreed with loop for {', '.join(names)}")
        self.queries += 1
        if not self.fast.sees_all_reads(problem, samples.perturbation.part(2, len(truth)), truth[0]):
            return _fall_back(
                self.fast,
                "does not see a weight that is read outside its layer, as by a penalty on the weights",
            )
        return self.fast


@dataclass(frozen=True)
class _Samples:
    perturbation: Perturbation
    names: list[str]


def _samples(problem: Problem, perturbation: Perturbation) -> _Samples:
    """Two queries that move nothing, then a few of each tensor (or two whole directions)."""
    parameters = problem.parameters
    if isinstance(perturbation, Directions):
        steps = perturbation.steps[:2]
        steps = steps * (STEP / steps.abs().amax(dim=1, keepdim=True))
        steps = torch.cat([torch.zeros(2, parameters.size, dtype=steps.dtype), steps])
        return _Samples(Directions(steps), ["the base", "the base"] + ["a direction"] * (len(steps) - 2))
    indices, names = [0, 0], ["the base", "the base"]
    for name, start, tensor in zip(parameters.names, parameters.starts, parameters.tensors, strict=True):
        last = tensor.numel() - 1
        chosen = sorted({0, last // 2, last})
        indices += [start + entry for entry in chosen]
        names += [name] * len(chosen)
    steps = torch.full((len(indices),), STEP, dtype=parameters.dtype)
    steps[:2] = 0
    return _Samples(Coordinates(torch.tensor(indices), steps), names)


def _fall_back(fast: Evaluator, what: str) -> Evaluator:
    warnings.warn(
        f"Evaluator {type(fast).__name__} {what}: loop is used from here on, right but slower. "
        "Variants need rows first in every layer, and in the objective no tensor of a fixed number of rows "
        "and nothing, such as a mean, over the rows of the whole batch.",
        EvaluatorWarning,
        stacklevel=2,
    )
    return Loop()
