"""`Evaluation`: a step's run of the objective with the real boxes, once, and the way back through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.failures import noted
from zo.draws import Key
from zo.evaluators.evaluator import Step
from zo.evaluators.stacked import Stacked
from zo.evaluators.state import Snapshot
from zo.execution.ranks import Ranks
from zo.failures import survivors
from zo.tangents.assumptions.cut import outputs_without_gradient
from zo.tangents.playback.playback import Live, Replayed, refuse_unseen_weights, replay
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recording import Dither, Recorded, RecordedCall, record
from zo.tangents.record.window import Window, without_failed
from zo.tangents.step import checks
from zo.tangents.step.settings import Probing
from zo.tangents.tangent import Linearised


class Evaluation:
    """What a step asked the boxes and was answered.

    Of the base alone there is a graph already, through which the way back goes. Beside probes, in the first
    step, with several processes and where rows failed, the objective is evaluated once more for that, with
    the recorded answers; the first step shows whether the two are the same.

    Args:
        step: the step, with the batch as it was given.
        boxes: the boxes that the objective calls.
        probing: how probes are made.
        probes: how many there are.
        key: the key of the step.
        ranks: the processes that share the variants.
        dither: what boxes are asked beside what the objective asks.

    Attributes:
        causes: why rows failed, as far as boxes said so.
        apart: whether variants could not be evaluated together, and were one after another.
        rows: how many rows the boxes were asked for.
        losses: the losses of the base, `(rows,)`.
        recorded: the calls of the boxes, as they were asked.
        survived: once it is settled, the rows that did not fail, `(rows,)` bool.
        calls: the calls then, with another row in the place of each that failed.
        batch: the batch in the same way.
    """

    def __init__(
        self,
        step: Step,
        boxes: Sequence[BlackBoxFunction],
        probing: Probing,
        probes: int,
        key: Key,
        ranks: Ranks,
        dither: Dither,
    ) -> None:
        self._step, self._boxes, self._probing = step, boxes, probing
        self._live: Live | None = None
        self.apart = False
        with noted() as self.causes:
            if probes or ranks.size > 1 or step.number == 0:
                recorded: Recorded = record(
                    step, boxes, probing.evaluator, probes, probing.mu, key, ranks, probing.chunk, dither
                )
                self.apart = recorded.apart
            else:
                self._live = Live(step, boxes, dither)
                recorded = self._live.seen
        self.rows, self.losses, self.recorded = recorded.rows, recorded.losses[0], recorded.calls
        self.survived: Tensor = torch.empty(0, dtype=torch.bool)
        self.calls: list[RecordedCall] = []
        self.batch: Any = None

    def settle(self, before: Snapshot) -> None:
        """See which rows failed, and do without them.

        Args:
            before: the network before the evaluation, which begins there again if some did.

        Raises:
            FailedQueriesError: all rows of the base failed.
        """
        self.survived = survivors(self.losses, self._step.number, self.causes)
        if self._live is not None and not self.survived.all():
            before.restore()
            self._live = None
        self.calls, self.batch = without_failed(self.survived, self.recorded, self._step.batch)

    def first_look(self, may_have_probes: bool) -> list[str]:
        """What the first step shows of an objective, for no row; later nothing.

        Args:
            may_have_probes: whether there may ever be some: what they need of an objective does not change.

        Returns:
            Boxes whose outputs the loss takes as whole numbers or the like, in words.

        Raises:
            TangentError: the objective reads weights where probes do not move them.
        """
        if self._step.number:
            return []
        if may_have_probes and isinstance(self._probing.evaluator, Stacked):
            refuse_unseen_weights(self._step, self._boxes, self.recorded, self.survived)
        return outputs_without_gradient(self._step, self._boxes, self.recorded, self.survived)

    def pairs(self) -> tuple[list[CallPairs], int]:
        """What each call shows a tangent, and how many pairs failed.

        Raises:
            FailedQueriesError, TangentError: see `checked_pairs`.
        """
        most = self._probing.max_dropped
        return checks.checked_pairs(self._boxes, self.calls, self.survived, most, self._step.number)

    def window(self, at_calls: Sequence[Linearised]) -> Window:
        """What was recorded, as a table of rows.

        Args:
            at_calls: what the box's tangent says at each call.
        """
        units = tuple((at.rows.d_scale, at.rows.response_scale) for at in at_calls)
        return Window(self._step.number, self.batch, tuple(self.calls), units, self.losses, self.survived)

    def back(self, window: Window, at_calls: Sequence[Linearised]) -> Replayed:
        """The way back by autograd, with the tangents in the boxes' place; no box runs. Once.

        Args:
            window: what was recorded.
            at_calls: what the box's tangent says at each call.

        Raises:
            TangentError: as `replay` and `Live.gradients`.
        """
        if self._live is None:
            return replay(self._step, self._boxes, window, at_calls)
        loss, gradients = self._live.gradients(at_calls)
        return Replayed(loss, gradients, False, self._live.reached)
