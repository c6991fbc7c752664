"""The evaluator that a name stands for."""

from __future__ import annotations

from zo.errors import ConfigurationError
from zo.evaluators.checked import Checked
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.objective import Closed, Objective, OutputLoss


def evaluator_of(chosen: str | Evaluator, objective: Objective) -> Evaluator:
    """An evaluator as it is given, or by its name.

    Raises:
        ConfigurationError: no such name; or a stack for a closure, which has no batch to repeat.
    """
    if chosen == "loop" or (chosen == "auto" and isinstance(objective, Closed)):
        return Loop()
    if isinstance(objective, Closed) and (
        chosen in ("stacked", "difference") or isinstance(chosen, Stacked | Checked | Difference)
    ):
        raise ConfigurationError(
            f"LossGradient, evaluator: expected 'loop' for a closure without arguments, got {chosen!r}, "
            "which needs a batch to repeat. Make it an objective(network, batch)."
        )
    if isinstance(chosen, Evaluator):
        return chosen
    if chosen == "difference" or (chosen == "auto" and isinstance(objective, OutputLoss)):
        return Checked(Difference(), Checked(Stacked()))
    if chosen in ("auto", "stacked"):
        return Checked(Stacked())
    raise ConfigurationError(
        "LossGradient, evaluator: expected 'auto', 'loop', 'stacked', 'difference' or an Evaluator, got "
        f"{chosen!r}."
    )
