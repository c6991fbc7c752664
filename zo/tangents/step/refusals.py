"""Refusals of a step of a `TangentGradient`, with words on how to mend its fault."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxError
from zo.errors import ConfigurationError, NonFiniteGradientError, TangentError
from zo.objective import mean_loss
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.tangent import Tangent


def refuse_unlearned(tangents: Sequence[Tangent]) -> None:
    """Refuse to have tangents learn before the first step that do not learn.

    Raises:
        ConfigurationError: there is one.
    """
    for tangent in tangents:
        if not tangent.learns:
            raise ConfigurationError(
                f"TangentGradient.prefit: expected tangents that learn, got {tangent!r}. Leave prefit out, "
                "or take tangent=None."
            )


def refuse_dependent_rows(loss: Tensor, base: Tensor, survived: Tensor) -> None:
    """Refuse a mean loss that depends on failed rows: its gradient would be of something else.

    Args:
        loss: the loss of the rows that survived, with others in the place of the failed ones.
        base: `(rows,)` losses that the boxes were asked for.
        survived: whether each row survived, `(rows,)` bool.

    Raises:
        TangentError: it is not the base's mean over those rows, to rounding.
    """
    if survived.all():
        return
    losses = base[survived]
    tolerance = torch.finfo(losses.dtype).eps ** 0.5 * losses.abs().amax()
    mean = mean_loss(losses)
    if not (loss - mean).abs() <= tolerance:
        raise TangentError(
            f"objective: expected losses that are the same without the {int((~survived).sum())} of "
            f"{len(survived)} rows that failed, got a mean of {loss:.6g} instead of {mean:.6g}: rows "
            "depend on each other, as under batch norm in train mode. Take network.eval(), or a norm over "
            "each row, or mend the box."
        )


def refuse_not_finite(
    gradients: Sequence[Tensor],
    errors: Sequence[float | None],
    far: Collection[int],
    step: int,
) -> None:
    """Refuse a gradient with NaN or infinity in it.

    Args:
        gradients: the gradient of each chosen parameter.
        errors: the error of the prediction of each call.
        far: the numbers of calls, from 1 on, with rows left out since they were too far from the prediction.
        step: the number of the step.

    Raises:
        NonFiniteGradientError: there is one.
    """
    device = gradients[0].device  # of flags, for which the host waits once
    if torch.stack([gradient.isfinite().all().to(device) for gradient in gradients]).all():
        return
    what = f"Step {step + 1}: expected a finite gradient, got NaN or infinity from a finite loss."
    pairs = enumerate(errors, start=1)
    worse = [str(n) for n, error in pairs if n in far or (error is not None and not error <= 1.0)]
    why = "See roots, logarithms and divisions by zero in network and objective"
    if worse:
        calls = f"call{'s' * (len(worse) > 1)} {', '.join(worse)}"
        why = (
            f"What the tangents expected at {calls} is off by more than what changed there: a box answered "
            "as it never did, or was asked where it never was. Else see roots, logarithms and divisions by "
            "zero in network and objective"
        )
    raise NonFiniteGradientError(
        f"{what} {why}. Go on with the next batch; where that comes again and again, bound what the network "
        "sends to boxes. A gradient may also grow on its way back through many calls: cut it, as by "
        ".detach() every 25 calls of what a box hands on, or take zo.LossGradient, which goes back through "
        "none."
    )


def refuse_fixed_rows(error: Exception, rows: int, usual: int) -> None:
    """Refuse an objective that fails with other numbers of rows than its batches have.

    Args:
        error: the error of the objective.
        rows: how many rows it was given.
        usual: how many rows the last batch had that ran.

    Raises:
        TangentError: the numbers differ, and it has no sentence of its own.
    """
    if rows == usual or isinstance(error, BlackBoxError | torch.OutOfMemoryError):
        return
    raise TangentError(
        f"TangentGradient.replay: expected an objective for any number of rows, got {type(error).__name__} "
        f"({error}) with a draw of {rows} instead of {usual}. Have it keep nothing that has as many rows as "
        f"the batch, or take replay(rows={usual}), or train without replays (Limits(replays=0))."
    ) from error


def saw_one_row(
    tangents: Sequence[Tangent], calls: Sequence[RecordedCall], pairs: Sequence[CallPairs]
) -> bool:
    """Say whether a step had a single row for some tangent that learns.

    Args:
        tangents: the tangents, one for each box.
        calls: the calls of the step.
        pairs: the pairs of each call.
    """
    rows: dict[int, int] = {}
    for call, call_pairs in zip(calls, pairs, strict=True):
        rows[call.box] = rows.get(call.box, 0) + int(call_pairs.alive.sum())
    return any(count <= 1 and tangents[box].learns for box, count in rows.items())
