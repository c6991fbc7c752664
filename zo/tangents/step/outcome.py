"""`Outcome`: what a step has come to, and what there is to say of its gradient and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from blackbox.failures import FailedRow
from blackbox.notices import Notices
from zo.batches import Batch
from zo.failures import CUT, ONE_ROW, lost_notice, many_lost_notice, zero_notice
from zo.tangents.assumptions.cut import whole_numbers_notice
from zo.tangents.evidence.along_gradient import Taken, flat_share
from zo.tangents.step import checks
from zo.tangents.tangent import Tangent
from zo.tangents.trust import Check, TrustWatch


@dataclass(frozen=True)
class Outcome:
    """A gradient that a step has taken, and what was found on the way.

    Attributes:
        taken: the gradient, with all that it was taken from.
        batch: the batch as it was given.
        check: what the check along it has shown.
        probes: how many there were.
        dropped: how many of their pairs failed.
        causes: why rows failed, as far as boxes said so.
        whole_numbers: boxes whose outputs the loss takes as whole numbers, in words; of a first step.
        unidentified: inputs whose derivative values do not show and that are not dithered, in words.
        begun: whether inputs are dithered from now on that were not.
    """

    taken: Taken
    batch: Batch
    check: Check
    probes: int
    dropped: int
    causes: Sequence[FailedRow]
    whole_numbers: Sequence[str]
    unidentified: Sequence[str]
    begun: bool

    @property
    def number(self) -> int:
        """The number of the step."""
        return self.taken.step.number

    @cached_property
    def zero(self) -> bool:
        """Whether the gradient is exactly zero."""
        return not any(bool(gradient.any()) for gradient in self.taken.gradients)

    @property
    def shown(self) -> Check:
        """The check, which knows from probes too whether a box is constant in pieces."""
        flat = self.check.flat
        if flat is None and self.probes:
            flat = flat_share([at.rows for at in self.taken.at_calls])
        return replace(self.check, flat=None if self.zero else flat)  # `zero_notice` says more of it

    @property
    def lost(self) -> int:
        """Rows that failed."""
        return int((~self.taken.window.survived).sum())

    def say(self, notices: Notices, watch: TrustWatch, tangents: Sequence[Tangent], lost: int) -> None:
        """Say what a zero gradient, rows that failed, and probes that moved nothing mean.

        Args:
            notices: what was said so far.
            watch: takes in what predictions are not to be believed for.
            tangents: one for each box.
            lost: rows that failed, of all steps so far.

        Warns:
            TangentWarning, ZeroGradientWarning, LostRowsWarning: there is something to say, once each.
        """
        number, window = self.number, self.taken.window
        pairs = [at.rows for at in self.taken.at_calls]
        if self.unidentified:
            watch.knows_nothing_of(number, self.unidentified)
        notices.say(whole_numbers_notice(number, self.whole_numbers))
        unmoved = checks.unmoved(pairs, self.dropped)
        if unmoved:
            watch.probes_moved_nothing(number, self.zero)
        if self.unidentified or (self.zero and (self.whole_numbers or unmoved)):
            notices.settle("zero")  # these say more of it
        if self.zero and not self.begun:
            one = checks.saw_one_row(tangents, window.calls, pairs)
            if number or not one:  # of one row a model knows no derivative yet
                why = ONE_ROW + CUT if one else CUT
                notices.say(zero_notice(number, self.taken.gradients[0], why))
        rows = len(window.survived) * (number + 1)
        notices.say(
            lost_notice(number, window.survived, self.causes, self.batch),
            many_lost_notice(number, lost, rows, self.causes),
        )
