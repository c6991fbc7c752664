"""What a `TangentGradient` refuses, with words on how to mend it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from blackbox import BlackBoxFunction
from zo.errors import ConfigurationError, FailedQueriesError, TangentError
from zo.objective import Closed, Objective, as_objective
from zo.parameters import Parameters
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import Tangent


def check_max_dropped(value: float) -> None:
    """Refuse what is no fraction."""
    if not 0 <= value <= 1:
        raise ConfigurationError(
            f"TangentGradient, max_dropped: expected a fraction in [0, 1], got {value!r}. "
            "0.5 lets every second pair fail."
        )


def checked_objective(objective: Objective) -> Objective:
    """Refuse a closure."""
    given = as_objective(objective)
    if isinstance(given, Closed):
        raise ConfigurationError(
            "TangentGradient, objective: expected objective(network, batch), got a closure without "
            "arguments, which has no rows to tell apart. Give it both."
        )
    return given


def refuse_failed_pairs(failed: Tensor, most: float, step: int) -> None:
    """Refuse a step in which more than a fraction of the pairs, `(pairs,)` bool, failed.

    Raises:
        FailedQueriesError: more.
    """
    count = int(failed.sum())
    if count > most * len(failed):
        raise FailedQueriesError(
            f"Step {step}: expected at most {most:.0%} of {len(failed)} pairs to fail, {count} did. See the "
            "black box's ledger; a smaller mu or learning rate keeps probes nearer to the base, max_dropped "
            "lets more of them go."
        )


def refuse_unmoved(pairs: Sequence[CallPairs], step: int) -> None:
    """Refuse a step in which no probe says anything.

    Raises:
        TangentError: there is no valid pair in any call.
    """
    if not any(bool(own.valid.any()) for own in pairs):
        raise TangentError(
            f"Step {step}: expected probes to change an input of a box, got the base's in each of "
            f"{len(pairs)} calls. Use weights in the forward of the module that holds them alone, or take "
            "evaluator='loop'; and see that mu is not lost in rounding."
        )


def checked_boxes(boxes: Sequence[BlackBoxFunction]) -> tuple[BlackBoxFunction, ...]:
    """Refuse what has no derivative to model, or is named twice."""
    if not isinstance(boxes, Sequence) or not boxes:
        raise ConfigurationError(
            f"TangentGradient, boxes: expected a list of black boxes, got {boxes!r}. Write boxes=[solver]."
        )
    for box in boxes:
        if not isinstance(box, BlackBoxFunction):
            raise ConfigurationError(
                f"TangentGradient, boxes: expected BlackBoxFunctions, got {type(box).__name__}. "
                "Make it a subclass of BlackBoxFunction first."
            )
        for kind, specs in (("input", box.inputs), ("output", box.outputs)):
            if not any(spec.differentiable for spec in specs):
                raise ConfigurationError(
                    f"TangentGradient, boxes: expected {box!r} to have a differentiable {kind}, found none "
                    f"among {', '.join(spec.name for spec in specs)}. Change its spec, or leave it out."
                )
    if len({id(box) for box in boxes}) < len(boxes):
        raise ConfigurationError(
            f"TangentGradient, boxes: expected different boxes, got {list(boxes)!r}. Name each once."
        )
    return tuple(boxes)


def checked_tangents(tangent: Tangent | Sequence[Tangent], boxes: int) -> tuple[Tangent, ...]:
    """A copy for each box: what they learn is their own."""
    several = [tangent] * boxes if isinstance(tangent, Tangent) else list(tangent)
    if len(several) != boxes or not all(isinstance(own, Tangent) for own in several):
        raise ConfigurationError(
            f"TangentGradient, tangent: expected a Tangent, or one for each of {boxes} boxes, got "
            f"{tangent!r}. Such as zo.DenseTangent()."
        )
    return tuple(copy.deepcopy(own) for own in several)


def check_trainable(parameters: Parameters) -> None:
    """Refuse frozen parameters, that autograd would leave out."""
    for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
        if not tensor.requires_grad:
            raise ConfigurationError(
                f"TangentGradient, parameters: expected those that require a gradient, got {name!r}, which "
                "does not. Leave it out, or set requires_grad=True."
            )
