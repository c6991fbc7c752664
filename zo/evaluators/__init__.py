"""Evaluators: ways to compute what a step's queries change; an evaluator of your own is an `Evaluator`.

`begin(step, base)` prepares a step and gives the function from queries (`Coordinates` or `Directions`) to
changes of the losses. It is checked against `Loop` before it is used, and again at steps 1, 10, 100, ...
"""

from zo.evaluators.difference.changes import Moved
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.difference.registry import difference_rule
from zo.evaluators.evaluator import Changes, Evaluator, Step, Unservable
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.perturbation import Coordinates, Directions, Perturbation

__all__ = [
    "Changes",
    "Coordinates",
    "Difference",
    "Directions",
    "Evaluator",
    "Loop",
    "Moved",
    "Perturbation",
    "Stacked",
    "Step",
    "Unservable",
    "difference_rule",
]
