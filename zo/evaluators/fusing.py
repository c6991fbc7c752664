"""Where fused kernels are faster, among layers whose queries are worth the seconds of compiling them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from zo.errors import EvaluatorWarning
from zo.evaluators.difference.compiling import Compiled
from zo.evaluators.difference.fast_rules import programs
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.timing import FASTER
from zo.evaluators.trial import Pair, Trial

# Of compiling, on one core of a server of 2023: 12 s for the first program, 0.6 to 0.8 for each further one.
FIRST_PROGRAM, PROGRAM = 12.0, 1.0  # seconds
STEPS = 30  # within which compiling must have paid if it saved all of the time: a run has more
ROUNDING = 20  # units in the last place of the loss


class Fusing:
    """Tries fused kernels.

    Args:
        trial: what was timed there so far is compared with.
    """

    def __init__(self, trial: Trial) -> None:
        self.at = trial

    def possible(self) -> bool:
        """Whether there are kernels for what some parameters reach."""
        return any(self._programs(numbers, 1) for numbers in self.at.kinds)

    def faster(self, plain: dict[str, Pair]) -> dict[str, Pair]:
        """Where fused kernels are faster, among kinds whose queries are worth the seconds of compiling."""
        at, names = self.at, self.at.problem.parameters.names
        stakes = []
        for kind, numbers in enumerate(at.kinds):
            best = sum(
                at.sizes[number] * at.seconds(kind, number).get(plain[names[number]], 0.0)
                for number in numbers
            )
            stakes.append(STEPS * at.asked * best / sum(at.sizes))
        known: set[object] = set()
        found: dict[str, Pair] = {}
        for kind in sorted(range(len(stakes)), key=lambda kind: -stakes[kind]):
            number = at.largest(kind)
            width = at.candidates.difference.suited(at.reading, number, True)
            new = self._programs(at.kinds[kind], width) - known
            first = FIRST_PROGRAM if Compiled.programs == 0 else 0.0
            worth = at.costs[kind] and self._programs([number], width)
            if not worth or stakes[kind] < first + PROGRAM * len(new):
                continue
            took = at.difference(number, width, at.most, fused=True)
            if took is None or not Compiled.works:
                break
            known |= new
            at.costs[kind]["fused", width] = took.seconds
            own = {}
            for other in at.kinds[kind]:
                costs = at.seconds(kind, other)
                if self._filling(other, width) * costs["fused", width] < FASTER * costs[plain[names[other]]]:
                    own[names[other]] = ("fused", width)
            if not own and not found:  # where it would have paid most it does not
                break
            found.update(own)
        return self._checked(found)

    def _checked(self, fused: dict[str, Pair]) -> dict[str, Pair]:
        """Those whose kernels give what the rules give, which were checked; others are named."""
        at = self.at
        parameters, wrong = at.problem.parameters, []
        for number, name in enumerate(parameters.names):
            if name not in fused:
                continue
            query = at.timing.queries(number, 1, 1.0)
            answers = []
            for kernels in (frozenset([name]), frozenset()):
                at.candidates.difference.kernels = kernels
                at.candidates.difference.widths = {name: fused[name][1] if kernels else 1}
                answers.append(at.candidates.checked.changes(at.problem, query, at.base))
                at.timing.checks += 1
            if not self._agree(*answers):
                wrong.append(name)
        at.candidates.difference.widths, at.candidates.difference.kernels = {}, frozenset()
        if wrong:
            warnings.warn(
                "Evaluator Difference: expected its fused kernels to give what its rules give, got something "
                f"else for {', '.join(wrong)}: rules are used there, right but slower.",
                EvaluatorWarning,
                stacklevel=2,
            )
        return {name: pair for name, pair in fused.items() if name not in wrong and Compiled.works}

    def _agree(self, found: Tensor, true: Tensor) -> bool:
        at = self.at
        eps = max(torch.finfo(dtype).eps for dtype in (true.dtype, at.problem.parameters.dtype))
        rows = torch.isfinite(true).all(dim=0) & torch.isfinite(at.base)
        off = (found - true)[:, rows].abs()
        allowed = Evaluator.agreement * true[:, rows].abs().amax(dim=1, keepdim=True) if rows.any() else 0.0
        return bool((off <= allowed + ROUNDING * eps * (1 + at.base[rows].abs())).all())

    def _filling(self, number: int, width: int) -> float:
        """Variants that run for each query of a parameter: its short passes are filled up."""
        own = self.at.asked * self.at.sizes[number] / sum(self.at.sizes)
        return -(-max(1.0, own) // width) * width / max(1.0, own)

    def _programs(self, numbers: list[int], variants: int) -> set[object]:
        at = self.at
        if at.base.dtype != torch.float32 or not Compiled.works:
            return set()
        reached = {place for number in numbers for place in at.reading.reached[number]}
        return programs((at.reading.nodes[place].call for place in reached), variants)
