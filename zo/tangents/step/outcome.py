"""`StepOutcome`: the outcome of a step, and the notices on its gradient and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from blackbox.notices import Notices
from zo.failed_rows import CUT, ONE_ROW, lost_notice, many_lost_notice, zero_notice
from zo.tangents.assumptions.cut import inputs_notice, inputs_without_gradient, outputs_notice
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.step.evaluations import Evaluation
from zo.tangents.step.refusals import saw_one_row
from zo.tangents.tangent import Tangent
from zo.tangents.trust import Check, TrustWatch


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step.

    Attributes:
        evaluation: the evaluation of the step.
        gradient: the gradient, with its tangents and window.
        unidentified: inputs whose derivative values do not show and that are not dithered, in words.
        excited: whether further inputs are dithered from now on.
    """

    evaluation: Evaluation
    gradient: StepGradient
    unidentified: Sequence[str]
    excited: bool

    @cached_property
    def zero(self) -> bool:
        """True if the gradient is exactly zero."""
        return not any(bool(gradient.any()) for gradient in self.gradient.gradients)

    @property
    def check(self) -> Check:
        """The check; of a zero gradient `zero_notice` says more than that the box is constant in pieces."""
        check = self.evaluation.check
        return replace(check, flat=None) if self.zero else check

    def say(self, notices: Notices, watch: TrustWatch, tangents: Sequence[Tangent], lost: int) -> None:
        """Say what a zero gradient and rows that failed mean.

        Args:
            notices: the notices given so far.
            watch: takes in what predictions are not to be believed for.
            tangents: one for each box.
            lost: rows that failed, of all steps so far.

        Warns:
            TangentWarning, ZeroGradientWarning, LostRowsWarning: there is something to say, once each.
        """
        evaluation, window, pairs = self.evaluation, self.gradient.window, self.gradient.pairs
        number, cut = window.step, evaluation.cut
        if self.unidentified:
            watch.knows_nothing_of(number, self.unidentified)
        inputs = inputs_without_gradient(self.gradient.boxes, self.gradient.back.reached)
        notices.say(inputs_notice(number, inputs), outputs_notice(number, cut))
        if evaluation.outlying is not None:
            notices.say(evaluation.outlying.notice(f"Step {number + 1}"))
        if self.unidentified or (self.zero and (cut or inputs)):
            notices.settle("zero")  # these say more of it
        if self.zero and not self.excited:
            one = saw_one_row(tangents, window.calls, pairs)
            if number or not one:  # of one row a model knows no derivative yet
                why = ONE_ROW + CUT if one else CUT
                notices.say(zero_notice(number, self.gradient.gradients[0], why))
        causes, rows = evaluation.causes, len(window.survived) * (number + 1)
        notices.say(
            lost_notice(number, window.survived, causes, evaluation.step.batch, evaluation.dithered),
            many_lost_notice(number, lost, rows, causes),
        )
