"""Failed rows and queries: the number that a step accepts, and the warnings of them, of noise and of zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox.failures import FailedRow, Failure
from blackbox.notices import Notice, Notices
from blackbox.words import counted
from zo.batches import Batch, tensors
from zo.errors import FailedBatchError, FailedQueriesError, LostRowsWarning, NoiseWarning, ZeroGradientWarning
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbations

# Of the differences that mu makes. A drift grows from query to query, so that one call's share is small.
NOISY = 1e-4
NOISIEST = 0.05  # also where it may be no more than sums in another order
OTHER = 1e-3  # of a loss, by which processors may differ after a long simulation
FEWEST_LOST, MANY_LOST = 10, 0.1  # rows, and of all so far the share, that are many to be left out
STILL = 10  # times in a row that a weight's queries have failed, which chance does not do; decision 108
ZERO = (
    "Does the objective use this network, and not another or a copy of it? Is the black box constant, or "
    "does it round its output to steps that mu does not cross?"
)
NO_BOX = " No black box failed: see the batch, and logarithms, roots and divisions in the objective."
CUT = (
    "Is a .detach(), a torch.no_grad(), an .item() or NumPy between the weights and the loss, which cuts "
    "autograd off, or a torch.utils.checkpoint with use_reentrant=True? Does the objective use this network, "
    "and not another or a copy of it? Is the layer before the black box saturated, as tanh is far from "
    "zero? Or is the black box constant there, as one that answers with labels is for a clamped logarithm? "
    "Then take a loss that is straight in its answers, such as the squared error, or "
    "zo.tangents.StudentTangent(loss='labels')."
)

ONE_ROW = (
    "The batches have one row: a model of a box's values knows no derivative by numbers that have been the "
    "same in all rows so far, such as one design for all. Give batches of two rows or more. Or: "
)


def survivors(base: Tensor, step: int, causes: Sequence[FailedRow] = ()) -> Tensor:
    """Say which rows of the base, `(rows,)` losses, did not fail: `(rows,)` bool.

    Args:
        base: The losses of the base, `(rows,)`.
        step: The number of the step, for the message.
        causes: Rows of black boxes that failed meanwhile; the message has the first one's reason.

    Raises:
        FailedBatchError: No row survived, and rows of black boxes failed.
        FailedQueriesError: No row survived, and no black box failed.
    """
    survived = torch.isfinite(base)
    if not survived.any():
        words = (
            f"Step {step + 1}: expected a finite loss in some row of the base evaluation, got none in "
            f"{counted(len(base), 'row')}.{_first(causes) or NO_BOX} Evaluate the objective by hand on this "
            "batch, under torch.no_grad(), to see why."
        )
        if any(cause.failure is not Failure.SKIPPED for cause in causes):
            advice = " Where the network has left what the box can take, bound its outputs, as by a sigmoid."
            raise FailedBatchError(words + advice, rows=len(base))
        raise FailedQueriesError(words)
    return survived


def lost_notice(
    step: int,
    survived: Tensor,
    causes: Sequence[FailedRow],
    batch: Batch = None,
    dithered: bool = False,
) -> Notice | None:
    """The warning of rows that are left out though no black box failed; None for none.

    The user does not expect them.

    Args:
        step: The number of the step.
        survived: `(rows,)` bool, False where the loss was not finite.
        causes: Rows of black boxes that failed meanwhile, which their ledgers count.
        batch: The batch of the objective, to say whether it is the reason.
        dithered: Whether inputs of a box were dithered, which may be the reason where the batch is not.
    """
    if any(cause.failure is not Failure.SKIPPED for cause in causes) or survived.all():
        return None
    lost_rows, rows = torch.nonzero(~survived).flatten().tolist(), len(survived)
    parts = [
        part[lost_rows].reshape(len(lost_rows), -1) for part in tensors(batch) if part.layout is torch.strided
    ]
    finite = [part.isfinite().all(dim=1).cpu() for part in parts]
    in_batch = int((~torch.stack(finite).all(dim=0)).sum()) if finite else 0
    where = f"The batch has numbers that are not finite in {in_batch} of these rows" if in_batch else ""
    where = where or "The batch is finite there: see logarithms, roots and divisions in network and objective"
    if dithered and not in_batch:
        where += (
            ". Inputs of a box were dithered, so an output may lie a little beyond what the box gives, such "
            "as below zero: clamp it before a root or a logarithm, as by .clamp(min=1e-6)"
        )
    named = ", ".join(map(str, lost_rows[:5])) + (", ..." if len(lost_rows) > 5 else "")
    return Notice(
        "lost",
        f"Step {step + 1}: expected a finite loss in every row, got NaN or infinity in {len(lost_rows)} of "
        f"{rows} ({len(lost_rows) / rows:.0%}: {named}), and no black box failed. The loss and its gradient "
        f"are those of the other {rows - len(lost_rows)} rows. {where}. Further such rows are counted (lost, "
        "in counts and metrics()), without another warning.",
        LostRowsWarning,
    )


def many_lost_notice(step: int, lost: int, rows: int, causes: Sequence[FailedRow]) -> Notice | None:
    """The warning of rows that black boxes failed on, where many of all so far are left out.

    A box with failures='keep' may fail in a few. Many are another data set than the user's.

    Args:
        step: The number of the step.
        lost: Rows that were left out in all steps so far.
        rows: Rows of all steps so far.
        causes: Rows of black boxes that failed in this step.
    """
    failed = [cause for cause in causes if cause.failure is not Failure.SKIPPED]
    if not failed or lost < FEWEST_LOST or lost <= MANY_LOST * rows:
        return None
    return Notice(
        "many lost",
        f"Step {step + 1}: expected black boxes to answer nearly all rows, got {lost} of {rows} rows so far "
        f"({lost / rows:.0%}) without a finite loss, as boxes failed.{_first(failed)} Loss and gradient are "
        "those of the other rows, and training knows nothing of these. Mend the box, or bound what the "
        "network sends it, as by a sigmoid. Further such rows are counted (lost, in counts and metrics()), "
        "without another warning.",
        LostRowsWarning,
    )


def bearable(most: float, queries: int) -> float:
    """Return how many of some queries may fail: a fraction of them, or one unless the fraction is zero."""
    return max(1.0, most * queries) if most else 0.0


def refuse_too_many(valid: Tensor, most: float, step: int, causes: Sequence[FailedRow] = ()) -> None:
    """Refuse a step in which more than a fraction of the queries are not valid.

    Args:
        valid: `(queries,)` bool, False where a query failed.
        most: The fraction that may fail.
        step: The number of the step, for the message.
        causes: Rows of black boxes that failed meanwhile; the message has the first one's reason.

    Raises:
        FailedQueriesError: More than are `bearable` failed, or all.
    """
    dropped = int((~valid).sum())
    if dropped > bearable(most, len(valid)) or dropped == len(valid):
        raise FailedQueriesError(
            f"Step {step + 1}: expected at most {most:.0%} of {counted(len(valid), 'query')} to fail, "
            f"{dropped} did.{_first(causes)} See the black box's ledger; a smaller mu or learning rate keeps "
            "variants nearer to the base, max_dropped lets more of them go."
        )


class UnknownSlopes:
    """Weights without any answered query, the last times that they were asked.

    A query that fails by chance fails elsewhere the next time. A query at the edge of a box's domain fails
    again, since its weight has not moved.
    """

    def __init__(self) -> None:
        self._times: dict[int, int] = {}  # by flat index
        self._notices = Notices()

    def look(
        self,
        step: int,
        plan: Perturbations,
        valid: Tensor,
        parameters: Parameters,
        causes: Sequence[FailedRow] = (),
    ) -> None:
        """Take in the queries of a step.

        Args:
            step: The number of the step.
            plan: Its queries; directions show nothing of a single weight.
            valid: `(queries,)` bool, False where a query failed.
            parameters: The parameters that they move.
            causes: Rows of black boxes that failed meanwhile; the message has the first one's reason.

        Warns:
            ZeroGradientWarning: A weight's queries have failed ten times in a row, once.
        """
        if self._notices.said or (valid.all() and not self._times):
            return
        answered, failed = set[int](), set[int]()
        for numbers in plan.slopes():
            first, last = int(numbers.min()), int(numbers.max()) + 1
            if not isinstance(
                plan.chunk(first, first + 1), Coordinates
            ):  # all directions may fill the memory
                continue
            part = plan.chunk(first, last)
            if isinstance(part, Coordinates) and last - first == numbers.numel():
                answered |= set(part.indices[valid[first:last]].tolist())
                failed |= set(part.indices[~valid[first:last]].tolist())
        failed -= answered
        times = {index: count for index, count in self._times.items() if index not in answered}
        self._times = times | {index: times.get(index, 0) + 1 for index in failed}
        still = sorted(index for index, count in self._times.items() if count >= STILL)
        if not still:
            return
        name, place = parameters.names[int(parameters.locate(torch.tensor(still[:1]))[0])], still[0]
        more = f" and {counted(len(still) - 1, 'other')}" if still[1:] else ""
        self._notices.once(
            "same queries",
            f"Step {step + 1}: expected a query that fails to be another one each time, got failures of the "
            f"same in {STILL} steps: of weight {place} of the flat parameters, in {name!r}{more}."
            f"{_first(causes)} "
            "Its gradient is taken for zero, so it stays where it is, probably at the edge of what the box "
            "answers. Take central=True, of which the other side is left; or keep the weight inside, by a "
            "bound such as low + (high - low) * torch.sigmoid(w).",
            ZeroGradientWarning,
        )


def _first(causes: Sequence[FailedRow]) -> str:
    """Why the first row failed, as a sentence with a space in front; nothing if no black box failed."""
    return f" The first cause: {causes[0].sentence_with_inputs().rstrip('.')}." if causes else ""


def noise_notice(step: int, noise: float, reordered: float, differences: Tensor) -> Notice | None:
    """The warning where noise is not small compared with the changes by `mu`; None where it is.

    Args:
        step: The number of the step.
        noise: How far two evaluations at the same weights were apart; 0 if nothing was evaluated twice.
        reordered: How far they may be apart by sums in another order alone.
        differences: The changes by the queries, `(queries,)`.
    """
    size = float(differences.square().mean().sqrt()) if len(differences) else 0.0
    if noise <= (NOISY if noise > reordered else NOISIEST) * size:
        return None
    return Notice(
        "noise",
        f"Step {step + 1}: expected two evaluations of the objective at the same weights to agree, got "
        f"losses that differ by {noise:.1e}; the differences that mu makes are about {size:.1e}: noise is "
        f"{noise / max(size, 1e-300):.1g} times as large. The network or the objective has state outside "
        "of torch (a counter, Python's or NumPy's random numbers), or a black box is noisy. Take that "
        "out, or take a larger mu.",
        NoiseWarning,
    )


def ranks_notice(step: int, noise: float, losses: Sequence[float]) -> Notice | None:
    """The warning where processes have other base losses than the first; None where not.

    Args:
        step: The number of the step.
        noise: How far two evaluations in one process were apart.
        losses: The base loss of each process.
    """
    gaps = [abs(loss - losses[0]) for loss in losses]
    most = max(gaps, default=0.0)
    if most <= max(10 * noise, OTHER * abs(losses[0] if losses else 0.0)):
        return None
    rank = gaps.index(most)
    return Notice(
        "ranks",
        f"Step {step + 1}: expected the same base loss in all processes, which have the same weights and "
        f"batch, got {losses[0]:.6g} on rank 0 and {losses[rank]:.6g} on rank {rank}. Each evaluates a "
        "share of the queries, so the gradient is that of several functions. Is a black box, or a file, "
        "program or package that it uses, another one there? Then mend that, or take first_alone=True.",
        NoiseWarning,
    )


def zero_notice(step: int, gradient: Tensor, why: str = ZERO) -> Notice | None:
    """The warning of a flat gradient `(size,)` that is exactly zero; None where it is not.

    Args:
        step: The number of the step.
        gradient: The gradient of this step, `(size,)`.
        why: The possible reason.
    """
    if gradient.any():
        return None
    return Notice(
        "zero",
        f"Step {step + 1}: expected some weight to change the loss, got a gradient that is exactly zero. "
        f"{why}",
        ZeroGradientWarning,
    )
