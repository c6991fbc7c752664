"""What a `TangentGradient` refuses, with words on how to mend it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxError, BlackBoxFunction
from blackbox.checks import check_choice, check_count, check_positive
from blackbox.group import BoxGroup
from blackbox.spec import none_differentiable
from zo.errors import ConfigurationError, FailedQueriesError, TangentError
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.objective import Closed, Objective, as_objective, mean_loss
from zo.parameters import Parameters
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recording import RecordedCall
from zo.tangents.tangent import Tangent

MAX_ROWS = 3.5  # what a step may cost where the user has not said so, in multiples of the base's rows


def checked_evaluator(evaluator: str | Evaluator) -> Stacked | Loop:
    """What evaluates base and probes; refuses what cannot show the calls of boxes."""
    if isinstance(evaluator, Stacked | Loop):
        return evaluator
    if isinstance(evaluator, Evaluator):
        raise ConfigurationError(
            f"TangentGradient, evaluator: expected 'stacked' or 'loop', zo.evaluators.Stacked() or Loop(), "
            f"got {evaluator!r}, which shows no calls of boxes. Take one of these two."
        )
    check_choice("TangentGradient", "evaluator", evaluator, ("stacked", "loop"))
    return Stacked() if evaluator == "stacked" else Loop()


def checked_probes(probes: int | None, tangents: Sequence[Tangent]) -> int:
    """How many probes there are; refuses none for tangents that have nothing else to learn from."""
    if probes is None:
        return 0 if all(tangent.learns_from_values or not tangent.learns for tangent in tangents) else 2
    if probes == 0 and type(probes) is int:
        for tangent in tangents:
            if tangent.learns and not tangent.learns_from_values:
                raise ConfigurationError(
                    f"TangentGradient, probes: expected at least 1 for {tangent!r}, which learns from "
                    "changes, got 0. Only tangents that learn from values, as StudentTangent, do without, or "
                    "that do not learn."
                )
    else:
        check_count("TangentGradient", "probes", probes)
    return probes


def checked_max_rows(max_rows: float | None, probes: int) -> float:
    """The budget of a step in multiples of the base's rows; None for the usual one, or what probes take."""
    if max_rows is None:
        return max(MAX_ROWS, 1.0 + probes)
    check_positive("TangentGradient", "max_rows", max_rows)
    if max_rows < 1 + probes:
        raise ConfigurationError(
            f"TangentGradient, max_rows: expected at least {1 + probes} times the rows of a first-order "
            f"step, as the base and probes={probes} take, got {max_rows!r}. Allow more, or take fewer probes."
        )
    return float(max_rows)


def refuse_without_values(tangents: Sequence[Tangent]) -> None:
    """Refuse to have tangents learn before the first step that learn from changes alone, or not at all.

    Raises:
        ConfigurationError: there is one that does not learn from values, nor what it stands on.
    """
    for tangent in tangents:
        if not any(part.learns_from_values for part in tangent.parts()):
            raise ConfigurationError(
                f"TangentGradient.prefit: expected tangents that learn from values (learns_from_values), got "
                f"{tangent!r}. Leave prefit out, or take tangent=None."
            )


def refuse_dependent_rows(loss: Tensor, base: Tensor, survived: Tensor) -> None:
    """Refuse a mean loss that is another without the rows that failed: its gradient is of something else.

    Args:
        loss: the loss of the rows that survived, with others in the place of those that did not.
        base: `(rows,)` losses that the boxes were asked for.
        survived: whether each row survived, `(rows,)` bool.

    Raises:
        TangentError: it is not the base's mean over those rows, to rounding.
    """
    if survived.all():
        return
    known = base[survived]
    allowed = torch.finfo(known.dtype).eps ** 0.5 * known.abs().amax()
    mean = mean_loss(known)
    if not (loss - mean).abs() <= allowed:
        raise TangentError(
            f"objective: expected losses that are the same without the {int((~survived).sum())} of "
            f"{len(survived)} rows that failed, got a mean of {loss:.6g} instead of {mean:.6g}: rows "
            "depend on each other, as under batch norm in train mode. Take network.eval(), or a norm over "
            "each row, or mend the box."
        )


def refuse_not_finite(gradients: Sequence[Tensor], errors: Sequence[float | None], step: int) -> None:
    """Refuse a gradient with NaN or infinity in it.

    Raises:
        TangentError: there is one.
    """
    device = gradients[0].device  # of flags, for which the host waits once
    if not torch.stack([gradient.isfinite().all().to(device) for gradient in gradients]).all():
        raise TangentError(
            f"Step {step + 1}: expected a finite gradient, got NaN or infinity. Relative errors of the "
            f"tangents by call: {list(errors)}. See where errors above 1 come from; more probes, a larger "
            "ridge or another tangent mend them."
        )


def checked_objective(objective: Objective) -> Objective:
    """The objective; refuses a closure."""
    checked = as_objective(objective)
    if isinstance(checked, Closed):
        raise ConfigurationError(
            "TangentGradient, objective: expected objective(network, batch), got a closure without "
            "arguments, which has no rows to distinguish. Give it both."
        )
    return checked


def checked_pairs(
    boxes: Sequence[BlackBoxFunction],
    calls: Sequence[RecordedCall],
    survived: Tensor,
    most: float,
    step: int,
) -> tuple[list[CallPairs], int]:
    """The pairs of each call, and how many failed; refuses a step with too many of those, or none at all.

    Args:
        boxes: the boxes that were called.
        calls: the calls of the step.
        survived: `(batch rows,)` bool, of the base.
        most: the fraction of pairs that may fail.
        step: the number of the step.

    Raises:
        FailedQueriesError: more of them failed.
        TangentError: no probe of the first step changed anything.
    """
    pairs = [call.pairs(boxes[call.box], survived) for call in calls]
    failed = torch.cat([call.failed(survived).flatten() for call in calls])
    _refuse_failed(failed, most, step)
    count = int(failed.sum())
    _refuse_unmoved(pairs, count, step)
    return pairs, count


def checked_boxes(boxes: Sequence[BlackBoxFunction | BoxGroup]) -> tuple[BlackBoxFunction, ...]:
    """The boxes, those of a host in its place; refuses what has no derivative to model, or is named twice."""
    if not isinstance(boxes, Sequence) or not boxes:
        raise ConfigurationError(
            f"TangentGradient, boxes: expected a list of black boxes, got {boxes!r}. Write boxes=[solver]."
        )
    single = [[*box.named_boxes.values()] if isinstance(box, BoxGroup) else [box] for box in boxes]
    boxes = [box for group in single for box in group]
    for box in boxes:
        if not isinstance(box, BlackBoxFunction):
            raise ConfigurationError(
                f"TangentGradient, boxes: expected BlackBoxFunctions, got {type(box).__name__}. "
                "Make it a subclass of BlackBoxFunction first."
            )
        for kind, specs in (("input", box.inputs), ("output", box.outputs)):
            if not any(spec.differentiable for spec in specs):
                raise ConfigurationError(
                    f"TangentGradient, boxes, {box!r}: {none_differentiable(kind, specs)}"
                )
    if len({id(box) for box in boxes}) < len(boxes):
        raise ConfigurationError(
            f"TangentGradient, boxes: expected different boxes, got {list(boxes)!r}. Name each once."
        )
    return tuple(boxes)


def checked_tangents(
    tangent: Tangent | Sequence[Tangent] | None, boxes: Sequence[BlackBoxFunction], seed: int
) -> tuple[Tangent, ...]:
    """A copy for each box: what they learn is their own. None for a choice by the box's specs."""
    if tangent is None:
        return tuple(AutoTangent(box, seed) for box in boxes)
    entries = [tangent] * len(boxes) if isinstance(tangent, Tangent) else list(tangent)
    if len(entries) != len(boxes) or not all(isinstance(entry, Tangent) for entry in entries):
        raise ConfigurationError(
            f"TangentGradient, tangent: expected a Tangent, or one for each of {len(boxes)} boxes, got "
            f"{tangent!r}. Such as zo.GridTangent()."
        )
    tangents = tuple(copy.deepcopy(entry) for entry in entries)
    for copied, box in zip(tangents, boxes, strict=True):
        copied.check_box(box)
    return tangents


def check_trainable(parameters: Parameters) -> None:
    """Refuse frozen parameters, that autograd would leave out."""
    for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
        if not tensor.requires_grad:
            raise ConfigurationError(
                f"TangentGradient, parameters: expected those that require a gradient, got {name!r}, which "
                "does not. Leave it out, or set requires_grad=True."
            )


def _refuse_failed(failed: Tensor, most: float, step: int) -> None:
    """Refuse a step in which more than a fraction of the pairs, `(pairs,)` bool, failed."""
    count = int(failed.sum())
    if count > most * len(failed):
        raise FailedQueriesError(
            f"Step {step + 1}: expected at most {most:.0%} of {len(failed)} pairs to fail, {count} did. See "
            "the black box's ledger; a smaller mu or learning rate keeps probes nearer to the base, "
            "max_dropped lets more of them go."
        )


def refuse_fixed_rows(error: Exception, rows: int, usual: int) -> None:
    """Refuse an objective that fails with other numbers of rows than its batches have.

    Args:
        error: what it failed with.
        rows: how many rows it was given.
        usual: how many the last batch had, with which it has run.

    Raises:
        TangentError: the numbers differ, and it has no sentence of its own.
    """
    if rows == usual or isinstance(error, BlackBoxError | torch.OutOfMemoryError):
        return
    raise TangentError(
        f"TangentGradient.replay: expected an objective for any number of rows, got {type(error).__name__} "
        f"({error}) with a draw of {rows} instead of {usual}. Have it keep nothing that has as many rows as "
        f"the batch, or take replay(rows={usual}), or train without replays (replays=0)."
    ) from error


def saw_one_row(
    tangents: Sequence[Tangent], calls: Sequence[RecordedCall], pairs: Sequence[CallPairs]
) -> bool:
    """Whether a step without probes had a single row for some tangent that learns from values.

    Args:
        tangents: the tangents, one for each box.
        calls: the calls of the step.
        pairs: the pairs of each call.
    """
    rows: dict[int, int] = {}
    for call, shown in zip(calls, pairs, strict=True):
        if len(shown.d):
            return False
        rows[call.box] = rows.get(call.box, 0) + int(shown.alive.sum())
    return any(
        count <= 1 and any(part.learns_from_values for part in tangents[box].parts())
        for box, count in rows.items()
    )


def unmoved(pairs: Sequence[CallPairs], failed: int) -> bool:
    """Whether there were probes, of which none changed an input of a box.

    Args:
        pairs: of all calls of the step.
        failed: how many pairs failed; where some did, the others may have been moved.
    """
    asked = any(len(call.d) for call in pairs)
    return asked and not failed and not any(bool(call.valid.any()) for call in pairs)


def _refuse_unmoved(pairs: Sequence[CallPairs], failed: int, step: int) -> None:
    """Refuse a first step in which no probe says anything, though none failed.

    Later, weights have moved inputs before: a layer is saturated, which ends no training.
    """
    if step == 0 and unmoved(pairs, failed):
        raise TangentError(
            f"Step {step + 1}: expected probes to change an input of a box, got the base's in each of "
            f"{len(pairs)} calls. Use weights in the forward of the module that holds them alone, or take "
            "evaluator='loop'; and see that mu is not lost in rounding."
        )
