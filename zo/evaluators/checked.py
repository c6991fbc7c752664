"""The first-use check: a fast evaluator must agree with `loop`, or `loop` takes its place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blackbox import BudgetError
from zo.errors import EvaluatorWarning
from zo.evaluators.evaluator import Evaluator, Problem, Unservable, in_passes
from zo.evaluators.loop import Loop
from zo.perturbation import Coordinates, Directions, Perturbation

# Of the check, far above mu: here the change of the loss must stand out of its rounding. The next one is for
# coordinates where it does not; a wrong one shows at any length, since fast evaluators know no limit of it.
STEPS = (1e-2, 1e-1, 1.0)
STANDS_OUT = 20  # times what is allowed for rounding: then a twentieth of a change that is missing is seen
ROUNDING = 200  # units in the last place of the loss
# Evaluations with every weight moved by some units in its last place, which shows what rounding does.
SHAKES, SHAKEN_UNITS = 3, 4


class Checked(Evaluator):
    """A fast evaluator that is compared with `Loop` on first use, on a few queries of each layer.

    A disagreement, or an error in the fast evaluator, names the parameter, warns once and leaves the
    work to `Loop`: a wrong gradient is worse than a slow one. So does a weight that is read where the
    fast one cannot see it, which need not show in a few losses. The rows of the check are counted like
    any others.

    It is made for coordinates and for directions, in training and in evaluation mode apart, since they
    take different ways through a fast evaluator.

    Args:
        fast: the evaluator to check.
        slow: what takes its place; None for `Loop`. It may be another that is checked.

    Attributes:
        active: the evaluator in use for each of these, by its name; empty before the first.
        passes: queries that what takes its place gets at once, for it may want more memory; 0 for all.
        queries: perturbed objectives that the check cost and that no one has taken into account yet.
    """

    def __init__(self, fast: Evaluator, slow: Evaluator | None = None) -> None:
        self.fast = fast
        self.slow = Loop() if slow is None else slow
        self.active: dict[str, Evaluator] = {}
        self.passes = 0
        self.queries = 0

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`."""
        return self._or_slow(problem, perturbation, lambda active, part: active.losses(problem, part))

    def changes(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> Tensor:
        """See `Evaluator.changes`."""
        return self._or_slow(problem, perturbation, lambda active, part: active.changes(problem, part, base))

    def serving(self, problem: Problem, perturbation: Perturbation) -> Evaluator:
        """The evaluator in use for perturbations of this kind; checked now if it was not before."""
        kind = _kind(problem, perturbation)
        if kind not in self.active:
            self.active[kind] = self._choose(problem, perturbation)
        return self.active[kind]

    def within(self, problem: Problem, perturbation: Perturbation, base: int, memory: int) -> int:
        """As many as the fast one takes; what may take its place has passes of its own."""
        self.passes = self.slow.within(problem, perturbation, base, memory)
        return self.fast.within(problem, perturbation, base, memory)

    def state_dict(self) -> dict[str, Any]:
        """Which were chosen: a resumed run neither pays for the check again nor changes evaluators."""
        active = {kind: type(evaluator).__name__ for kind, evaluator in self.active.items()}
        return {"active": active, "passes": self.passes, "slow": self.slow.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the choice of `state_dict`."""
        known = {type(evaluator).__name__: evaluator for evaluator in (self.slow, self.fast)}
        # One that is not known here is chosen anew.
        self.active = {kind: known[name] for kind, name in state["active"].items() if name in known}
        self.passes = state.get("passes", 0)  # earlier versions had none
        self.slow.load_state_dict(state.get("slow", {}) or self.slow.state_dict())

    def take_queries(self) -> int:
        """Queries that the check has cost since this was last asked."""
        taken, self.queries = self.queries, 0
        return taken + self.fast.take_queries() + self.slow.take_queries()

    def _or_slow(
        self,
        problem: Problem,
        perturbation: Perturbation,
        evaluate: Callable[[Evaluator, Perturbation], Tensor],
    ) -> Tensor:
        active = self.serving(problem, perturbation)
        if active is not self.slow:
            try:
                return evaluate(active, perturbation)
            except Unservable as error:  # a batch of another shape than the one that was checked
                fallen = self._fall_back(f"could not run ({error})")
                self.active[_kind(problem, perturbation)] = fallen
        return in_passes(lambda part: evaluate(self.slow, part), perturbation, self.passes)

    def _choose(self, problem: Problem, perturbation: Perturbation) -> Evaluator:
        samples = _samples(problem, perturbation)
        # The first two move nothing: their difference is the noise of the objective itself.
        truth = Loop().losses(problem, samples.perturbation)
        self.queries += len(truth)
        scale = self._rounding(problem, truth)
        truth, samples = self._standing_out(problem, samples, truth, scale)
        # No more at a time than the work itself takes; but one variant, or two alike, mix with no other.
        size = max(3, len(perturbation))
        try:
            found = torch.cat(
                [
                    self.fast.changes(problem, samples.perturbation.part(start, start + size), truth[0])
                    for start in range(0, len(samples.perturbation), size)
                ]
            )
            self.queries += len(found)
        except BudgetError:
            raise
        except Exception as error:  # whatever it is, loop has just shown that the objective works
            return self._fall_back(f"raised {type(error).__name__} ({error})")
        change = truth - truth[0]
        size = change.abs()
        if self.fast.coarse:  # not of each row's own, which may be next to nothing
            size = size.nan_to_num(0.0).amax(dim=1, keepdim=True).expand_as(size)
        allowed = self.fast.agreement * size + scale
        lost = ~torch.isfinite(found) & torch.isfinite(change)
        # A row that fails in one of them is a failed row, not a fault; most rows of a query are one.
        # One that failed in the base has no change to be compared by.
        comparable = torch.isfinite(found) & torch.isfinite(change)
        close = ((found - change).abs() <= allowed) | ~comparable
        right = close.all(dim=1) & (lost.double().mean(dim=1) <= 0.5)
        if not right.all():
            names = sorted({samples.names[query] for query in torch.nonzero(~right).flatten().tolist()})
            return self._fall_back(f"disagreed with loop for {', '.join(names)}")
        self.queries += 1
        if not self.fast.sees_all_reads(problem, samples.perturbation.part(2, len(truth)), truth[0]):
            return self._fall_back(
                "does not see a weight that is read outside its layer, as by a penalty on the weights",
            )
        return self.fast

    def _rounding(self, problem: Problem, truth: Tensor) -> Tensor:
        """How far the losses of each row may be off by rounding and by noise, `(rows,)`.

        Rounding is what some units in the last place of the weights change. It can be far above the loss's
        own: a confident row's is the small difference of large logits.
        """
        noise = (truth[0] - truth[1]).abs().nan_to_num(0.0).max()
        # A loss may be summed in float64 behind a network in float32.
        eps = max(torch.finfo(dtype).eps for dtype in (truth.dtype, problem.parameters.dtype))
        weights = torch.cat([tensor.detach().flatten().cpu() for tensor in problem.parameters.tensors])
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (SHAKES, len(weights)), generator=generator) * 2 - 1
        shaken = Loop().losses(
            problem, Directions(SHAKEN_UNITS * torch.finfo(weights.dtype).eps * weights * signs)
        )
        self.queries += SHAKES
        shifts = (shaken - truth[0]).abs().nan_to_num(0.0).amax(dim=0)
        # A confident row's losses are multiples of a step of their own, and most draws leave them as they
        # are: what moves the others says how long it is.
        if (shifts > 0).any():
            shifts = torch.maximum(shifts, shifts[shifts > 0].median())
        return ROUNDING * eps * truth[0].abs() + 10 * (noise + shifts)

    def _standing_out(
        self, problem: Problem, samples: _Samples, truth: Tensor, scale: Tensor
    ) -> tuple[Tensor, _Samples]:
        """The same with longer steps for coordinates whose losses do not stand out of the rounding."""
        if not isinstance(samples.perturbation, Coordinates):
            return truth, samples
        indices, steps = samples.perturbation.indices, samples.perturbation.steps.clone()
        for longer in STEPS[1:]:
            change = (truth - truth[0]).abs().nan_to_num(0.0)
            weak = torch.nonzero(~(change > STANDS_OUT * scale).any(dim=1).cpu()).flatten()
            weak = weak[weak > 1]
            if not len(weak):
                break
            steps[weak] = longer
            truth[weak.to(truth.device)] = Loop().losses(problem, Coordinates(indices[weak], steps[weak]))
            self.queries += len(weak)
        return truth, _Samples(Coordinates(indices, steps), samples.names)

    def _fall_back(self, what: str) -> Evaluator:
        name, mend = "another", ""
        if isinstance(self.slow, Loop):
            name = "loop"
            mend = (
                " Variants need rows first in every layer, and in the objective no tensor of a fixed number "
                "of rows and nothing, such as a mean, over the rows of the whole batch."
            )
        elif isinstance(self.slow, Checked):
            name = type(self.slow.fast).__name__.lower()
        said = f"Evaluator {type(self.fast).__name__} {what}: {name} is used from here on, right but slower."
        warnings.warn(f"{said}{mend}", EvaluatorWarning, stacklevel=2)
        return self.slow


@dataclass(frozen=True)
class _Samples:
    perturbation: Perturbation
    names: list[str]


def _samples(problem: Problem, perturbation: Perturbation) -> _Samples:
    """Two queries that move nothing, then a few of each tensor (or two whole directions)."""
    parameters = problem.parameters
    if isinstance(perturbation, Directions):
        steps = perturbation.steps[:2]
        steps = steps * (STEPS[0] / steps.abs().amax(dim=1, keepdim=True))
        steps = torch.cat([torch.zeros(2, parameters.size, dtype=steps.dtype), steps])
        return _Samples(Directions(steps), ["the base", "the base"] + ["a direction"] * (len(steps) - 2))
    indices, names = [0, 0], ["the base", "the base"]
    for name, start, tensor in zip(parameters.names, parameters.starts, parameters.tensors, strict=True):
        last = tensor.numel() - 1
        chosen = sorted({0, last // 2, last})
        indices += [start + entry for entry in chosen]
        names += [name] * len(chosen)
    steps = torch.full((len(indices),), STEPS[0], dtype=parameters.dtype)
    steps[:2] = 0
    return _Samples(Coordinates(torch.tensor(indices), steps), names)


def _kind(problem: Problem, perturbation: Perturbation) -> str:
    return f"{type(perturbation).__name__}, {'training' if problem.network.training else 'evaluation'}"
