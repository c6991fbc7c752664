"""Evaluators: ways to compute what a step's queries change; an evaluator of your own is an `Evaluator`.

`begin(step, base)` prepares a step and gives the function from queries (`Coordinates` or `Directions`) to
changes of the losses. It is checked against `Loop` before it is used, and again at steps 1, 10, 100, ...
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
