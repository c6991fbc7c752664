"""Who is timed: the paper's worker, and every evaluator; and how many queries each is given at once."""

from __future__ import annotations

import torch
from zo.evaluators.reuse import FeatureReuse

import zo
from benchmarks.query_speed.baselines import InPlace, Published
from benchmarks.query_speed.measuring import BASELINE, Contender
from benchmarks.query_speed.problems import MU, Timed
from zo.evaluators.choice import evaluator_of
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.state import Snapshot
from zo.perturbation import Coordinates

ONE_BY_ONE = 2
TOGETHER = 16  # of the fast ones, a multiple of what they run in a pass

IN_PLACE = "in place"
LAST = "in place, channels last"
DIFFERENCE = "difference"
FUSED = "difference, fused"
FUSED_16 = "difference, fused, bfloat16"
HALF = "difference, bfloat16"
REUSE = "reuse"
AUTO = "auto"
CHUNK = 96  # queries at which "auto" measures, drawn from all weights, as the first chunk of a step would be


def contenders(timed: Timed, names: tuple[str, ...], together: int = TOGETHER) -> dict[str, Contender]:
    """The contenders of these names, made for a problem.

    Args:
        timed: the problem.
        names: of `NAMES`.
        together: queries that the fast ones are given at once.
    """
    makers = {
        BASELINE: lambda: Contender(Published(timed.chain), min(ONE_BY_ONE, together)),
        IN_PLACE: lambda: Contender(InPlace(timed.chain), min(ONE_BY_ONE, together)),
        LAST: lambda: Contender(InPlace(timed.chain, torch.channels_last), min(ONE_BY_ONE, together)),
        "loop": lambda: Contender(zo.Loop(), 1),
        "stacked": lambda: Contender(zo.Stacked(), min(4, together)),
        DIFFERENCE: lambda: Contender(Difference(), min(4, together)),
        HALF: lambda: Contender(Difference(dtype=torch.bfloat16), together),
        FUSED: lambda: Contender(Difference(fused=True), together),
        FUSED_16: lambda: Contender(Difference(fused=True, dtype=torch.bfloat16), together),
        REUSE: lambda: Contender(FeatureReuse(Difference()), min(ONE_BY_ONE, together)),
        AUTO: lambda: Contender(_measured(timed), together),
    }
    return {name: makers[name]() for name in names}


@torch.no_grad()
def _measured(timed: Timed) -> Evaluator:
    """What a user gets who names no evaluator, after its first chunk: it has measured and chosen."""
    problem = timed.problem
    evaluator = evaluator_of("auto", problem.objective)
    count = min(CHUNK, problem.parameters.size)
    indices = torch.linspace(0, problem.parameters.size - 1, count).long()
    before = Snapshot(problem.network)
    base = timed.base()
    before.restore()
    evaluator.changes(problem, Coordinates(indices, problem.parameters.steps(indices, MU)), base)
    before.restore()
    return evaluator


def choices(timed: Timed, contender: Contender) -> dict[str, float]:
    """Fractions of the weights that "auto" gives to each evaluator, in words."""
    parameters, found = timed.problem.parameters, {}
    if not isinstance(contender.evaluator, zo.Measured):
        return {}
    for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
        own, width = contender.evaluator.chosen.get(name, ("stacked", 0))
        said = f"{own}, {width or 'its own number'} together" if width != 1 else own
        found[said] = found.get(said, 0.0) + tensor.numel() / parameters.size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


NAMES = (BASELINE, "loop", REUSE, "stacked", DIFFERENCE, HALF, FUSED, FUSED_16, AUTO)
