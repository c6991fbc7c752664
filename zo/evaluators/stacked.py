"""`Stacked`: P variants on P x B rows in one pass, so a batched solver steps them all together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from blackbox.errors import BudgetError
from zo.batches import repeat, tensors
from zo.evaluators.evaluator import Changes, Evaluator, Step, Unservable
from zo.evaluators.forwards import replaced
from zo.evaluators.generators import TRIES, States, disturbed, states
from zo.evaluators.hidden_weights import hidden
from zo.evaluators.loop import Loop
from zo.evaluators.padding import kept_padding
from zo.evaluators.replacements import copied_bytes, replacements, size_in_bytes
from zo.evaluators.sentinel import left_out, refuse_shifted, with_sentinel
from zo.evaluators.state import Snapshot
from zo.objective import losses, uncompiled
from zo.perturbation import Perturbation

SLACK = 2  # for what kernels need beside the tensors that they give: unfolded convolutions, say


@dataclass(frozen=True)
class Stacked(Evaluator):
    """All variants of a chunk in one call of the objective.

    The layers with changed weights get, for that call, a forward that knows the variants. For single changed
    weights of the layers in `point_rules` it needs no copies; for all else it is `torch.func` over copies of
    the layer. The objective itself sees an ordinary network and a batch of P x B rows, so it may call black
    boxes, and as often as it likes.

    In each chunk one more variant moves nothing; if its losses differ from the base's, the chunk is refused
    (see `sentinel`). A chunk is also refused if the objective reads a moved weight outside of these layers:
    the weight is NaN there. A chunk of one query is evaluated as `Loop` does, and one of more than
    `Step.stack` in parts.
    """

    sentinels: ClassVar[int] = 1
    needs_batch: ClassVar[bool] = True

    def begin(self, step: Step, base: Tensor) -> Changes:
        """Keep what each chunk must leave as it was; see `Evaluator.begin`."""
        start = step.snapshot()
        one = Loop().begin(step, base)

        def changes(perturbation: Perturbation) -> Tensor:
            if len(perturbation) == 1:
                return one(perturbation)
            most = step.stack or len(perturbation)
            if len(perturbation) > most:  # of a chunk for `Difference`, in whose place it is
                starts = range(0, len(perturbation), most)
                return torch.cat([changes(perturbation.part(start, start + most)) for start in starts])
            queries = with_sentinel(perturbation)
            moved = [step.parameters.tensors[number] for number in step.parameters.moved(queries)]
            run = partial(stacked_losses, step, queries, start, moved)
            ended: list[States] = []  # of the generators, by try
            for _ in range(TRIES):
                try:
                    changed = run(ended=ended) - base
                except (BudgetError, Unservable):
                    raise
                except Exception:  # of a black box that refuses NaN, perhaps
                    _refuse_unseen(step, queries, base)
                    raise
                step.tally.queries += 1
                try:
                    unseen = partial(_refuse_unseen, step, queries, base)
                    refuse_shifted(step, queries, base, changed, run, unseen)
                except Unservable:
                    if step.draws is None:
                        raise
                    step.draws.trust_base()  # it may be what is off
                    if not step.draws.disturbed(ended):
                        raise
                    step.tally.queries += len(perturbation)
                else:
                    return left_out(changed)
            raise disturbed()

        return changes

    def bytes_per_query(self, step: Step, perturbation: Perturbation, base: int) -> int:
        """See `Evaluator.bytes_per_query`."""
        batch = sum(size_in_bytes(tensor) for tensor in tensors(step.batch))
        return batch + SLACK * base + copied_bytes(step, perturbation)


def stacked_losses(
    step: Step,
    perturbation: Perturbation,
    start: Snapshot,
    hiding: Sequence[Tensor] = (),
    ended: list[States] | None = None,
) -> Tensor:
    """Losses `(queries, rows)` of all variants by one call of the objective; `start` is restored after it.

    Args:
        step: The step, with its network, objective and batch.
        perturbation: The perturbation of each variant.
        start: The state of the network that is put back.
        hiding: Weights that are NaN but for the layers that know the variants.
        ended: Gets the states of the generators behind the objective.
    """
    variants = len(perturbation)
    try:
        forwards = replacements(step, perturbation)
        hiding_them = hidden(hiding, forwards) if hiding else nullcontext()
        with kept_padding(step.parameters), replaced(forwards), hiding_them, uncompiled():
            batch = repeat(step.batch, variants)
            stacked = losses(step.objective, step.network, batch, variants * step.rows)
        if ended is not None:
            ended.append(states())
    finally:
        start.restore()
    return stacked.view(variants, step.rows)


def _refuse_unseen(step: Step, queries: Perturbation, base: Tensor) -> None:
    """Refuse a chunk that lost rows because the objective reads a moved weight outside its layer.

    Such a read sees the base's weight in all variants. Costs up to three queries.

    Raises:
        Unservable: It does.
    """
    numbers, modules = step.parameters.moved(queries), replacements(step, queries)
    start = step.snapshot()
    lost_rows = torch.isfinite(base)

    def answered(weights: Sequence[Tensor]) -> Tensor:
        """Say which rows have a loss while these weights are NaN outside of their layers."""
        step.tally.queries += 1
        try:
            with kept_padding(step.parameters), hidden(weights, modules), uncompiled():
                return torch.isfinite(losses(step.objective, step.network, step.batch, step.rows))
        finally:
            start.restore()

    for _ in range(2):  # a row that fails by chance does not fail twice
        try:
            lost_rows = lost_rows & ~answered([step.parameters.tensors[n] for n in numbers])
        except BudgetError:
            raise
        except Exception:  # with the weights in sight it did not fail
            pass
        if not lost_rows.any():
            return
    try:
        lost_rows = lost_rows & answered([])
    except BudgetError:
        raise
    except Exception:  # a box that is down by now
        return
    if not lost_rows.any():
        return
    names = ", ".join(step.parameters.names[number] for number in numbers[:3])
    raise Unservable(
        f"{names}{', ...' if len(numbers) > 3 else ''}: read outside its layer, as by a penalty on the "
        "weights, where variants are not distinguished"
    )
