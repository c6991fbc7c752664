"""`Trial`: a step at which the evaluators that "auto" chooses from are timed, and what that has come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from zo.evaluators.checked import Checked
from zo.evaluators.difference.evaluator import TEMPORARIES, Difference
from zo.evaluators.difference.reading import Reading
from zo.evaluators.evaluator import Problem
from zo.evaluators.loop import Loop
from zo.evaluators.reuse import FeatureReuse
from zo.evaluators.stacked import Stacked
from zo.evaluators.timing import Timing, Took

STACKED_MOST = 16
Pair: TypeAlias = tuple[str, int]  # name of an evaluator, and how many variants together


@dataclass(frozen=True)
class Candidates:
    """The evaluators that "auto" chooses from.

    Attributes:
        stacked: checked against `loop`.
        difference: whose recording of a step `checked` and `reuse` use.
        checked: `difference`, checked against `loop`; `stacked` where it does not serve.
        reuse, loop: the others.
    """

    stacked: Checked = field(default_factory=lambda: Checked(Stacked()))
    difference: Difference = field(default_factory=Difference)
    loop: Loop = field(default_factory=Loop)
    checked: Checked = field(init=False)
    reuse: FeatureReuse = field(init=False)

    def __post_init__(self) -> None:
        """Those that use others."""
        object.__setattr__(self, "checked", Checked(self.difference, self.stacked))
        object.__setattr__(self, "reuse", FeatureReuse(self.difference))


class Trial:
    """Times candidates at a step.

    Parameters in front of activations of one size are a kind. Its largest one is timed, the others are taken
    to cost what the sizes of the activations behind them say.

    Args:
        candidates: to be timed.
        problem: of the step.
        base: losses of the base, `(rows,)`.
        most: queries that timing may cost.
        asked: queries of the step, about.
        step: of a query, mu or so: how far losses may be subtracted hangs on it.

    Attributes:
        reading: of `difference`.
        timing: of queries, and how many that took.
        sizes: of the parameters.
        kinds: numbers of the parameters of each, the kind with most weights first.
        costs: seconds of a query of each kind's largest parameter.
        anywhere: of a query of any parameter, where the whole network runs.
        subtracting: for each kind whether the losses of its queries may be subtracted.
        room_stacked: variants of a pass of `stacked` that memory has room for.
    """

    def __init__(
        self, candidates: Candidates, problem: Problem, base: Tensor, most: int, asked: int, step: float
    ) -> None:
        self.candidates, self.problem, self.base = candidates, problem, base
        self.most, self.asked = most, asked
        self.reading: Reading = candidates.difference.reading(problem, base)
        tail = self.reading.tail
        self.timing = Timing(problem, base, step, waits=tail is not None and tail.box)
        self.room_stacked = candidates.checked.passes or STACKED_MOST
        self.sizes = [tensor.numel() for tensor in problem.parameters.tensors]
        kinds: dict[int, list[int]] = {}
        for number in range(len(self.sizes)):
            kinds.setdefault(self.reading.widest(number), []).append(number)
        self.kinds = sorted(kinds.values(), key=lambda own: -sum(self.sizes[number] for number in own))
        self.costs: list[dict[Pair, float]] = [{} for _ in self.kinds]
        self.anywhere: dict[Pair, float] = {}
        self.subtracting = [False] * len(self.kinds)

    def largest(self, kind: int) -> int:
        """The parameter of a kind that has most weights."""
        return max(self.kinds[kind], key=lambda number: self.sizes[number])

    def difference(self, number: int, width: int, most: int, fused: bool = False) -> Took | None:
        """What queries of a parameter by `difference` took; see `Timing.each`."""
        name = self.problem.parameters.names[number]
        difference = self.candidates.difference
        if width > 1 and width * TEMPORARIES * self.reading.widest(number) > difference.memory:
            return None
        difference.widths, difference.kernels = {name: width}, frozenset([name] if fused else [])
        try:
            return self.timing.each(self.candidates.checked, number, width, most)
        finally:
            difference.widths, difference.kernels = {}, frozenset()

    def seconds(self, kind: int, number: int) -> dict[Pair, float]:
        """Seconds of a query of a parameter by each candidate."""
        cost, timed = self.costs[kind], self.largest(kind)
        if not cost:  # the nearest kind that was timed says what a byte of activations costs
            near = [other for other, own in enumerate(self.costs) if own]
            if not near:
                return {}
            kind = min(near, key=lambda other: abs(self._work(self.largest(other)) - self._work(number)))
            timed = self.largest(kind)
            cost = {
                ("difference", 0) if pair[0] == "difference" else pair: seconds
                for pair, seconds in sorted(self.costs[kind].items(), key=lambda item: -item[1])
                if pair[0] != "fused"
            }
        scale = self._work(number) / self._work(timed)
        whole = self.anywhere if self.subtracting[kind] else {}
        return {pair: scale * seconds for pair, seconds in cost.items()} | whole

    def _work(self, number: int) -> int:
        """Bytes of all activations behind a parameter."""
        return max(1, sum(self.reading.activations.sizes[place] for place in self.reading.reached[number]))
