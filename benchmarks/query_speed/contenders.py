"""Who is timed: plain loops with feature reuse, and every evaluator; how many queries each gets at once."""

from __future__ import annotations

import torch

import zo
from benchmarks.query_speed.baselines import InPlace, Published
from benchmarks.query_speed.measuring import BASELINE, Contender
from benchmarks.query_speed.problems import Timed

IN_PLACE = "in place"
LAST = "in place, channels last"
DIFFERENCE = "difference"
EXACT = "difference, variants=1"
TOGETHER = 8  # queries of one tensor that the fast ones are given at once
NAMES = (BASELINE, IN_PLACE, LAST, "loop", "stacked", DIFFERENCE, EXACT)


def contenders(timed: Timed, names: tuple[str, ...], together: int = TOGETHER) -> dict[str, Contender]:
    """The contenders of these names, made for a problem.

    Args:
        timed: the problem.
        names: of `NAMES`; "difference" is what "auto" takes for an `OutputLoss`.
        together: queries that "difference" is given at once.
    """
    makers = {
        BASELINE: lambda: Contender(Published(timed.chain), min(2, together)),
        IN_PLACE: lambda: Contender(InPlace(timed.chain), min(2, together)),
        LAST: lambda: Contender(InPlace(timed.chain, torch.channels_last), min(2, together)),
        "loop": lambda: Contender(zo.evaluators.Loop(), 1),
        "stacked": lambda: Contender(zo.evaluators.Stacked(), min(4, together)),
        DIFFERENCE: lambda: Contender(zo.evaluators.Difference(), together),
        EXACT: lambda: Contender(zo.evaluators.Difference(variants=1), min(4, together)),
    }
    return {name: makers[name]() for name in names}
