"""`Limits`: bounds on the gradient, replays and checks of a `TangentGradient`, for those who want others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blackbox.checks import check_count, check_number
from zo.tangents.trust.thresholds import Thresholds

FIRST_CHECK = 10  # steps, where checks are rarer: a tenth of a short run


@dataclass(frozen=True)
class Limits:
    """Bounds on the use of tangents by a `TangentGradient`, and how often they are checked.

    The defaults were measured together: change one for a reason, and compare a held-out loss.

    Attributes:
        replays: how many replays may follow each step, see `TangentGradient.replay`; None for as many as are
            trusted, which is none with a `StudentTangent`.
        max_age: the number of windows that are kept to be replayed, the oldest going; None for the last
            third of all so far, and at least twenty. They take at most 1 GiB, and an eighth of the memory.
        clip: the longest gradient that is added to `.grad`, in multiples of the median length of the last 25
            steps' gradients. Longer gradients are shortened to it (`counts.clipped`): where a tangent has
            seen no data it can be wrong by orders of magnitude. If the parts that are cut off keep pointing
            the same way (a rare class, say), the bound is raised, with a notice. If a third of the gradients
            are far longer, or one of several that are added up was shortened, a notice says so once. None
            for no bound: also where no tangent learns from values, and where several batches make one step.
        excite: the size of the dither, noise that is added to inputs whose derivative cannot be learned from
            values alone, in multiples of their spread. Such an input is an action that is a function of the
            observation, or one design for all rows. The dither costs no further row. The objective gets the
            answer less the tangent's own response to the dither. None for a size that is found, 0 for no
            dither. See docs/concepts/closed_loop.md.
        check_every: steps between checks, each of one query, with a first one after ten; None for none. If a
            tangent learns, the first step whose gradient is used is checked too; where that finds fault, the
            step takes the gradient times its agreement, between -1 and 1. After the first check that finds a
            fault, one more query shows whether the boxes are noisy. Where they are not, each fault is
            confirmed by another query, a tenth as far.
        early: how many steps at the beginning are each checked in this way, until a check finds no fault; 1
            where rows are counted, as in a run with a budget.
        outliers: whether to leave out an answer that is ten standard deviations off, both from all answers so
            far and from its prediction, and the only such answer in fifty steps.

    Raises:
        ConfigurationError: a value is out of range.
    """

    thresholds: ClassVar[Thresholds] = Thresholds()

    replays: int | None = None
    max_age: int | None = None
    clip: float | None = 2.0
    excite: float | None = None
    check_every: int | None = 25
    early: int = 5
    outliers: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers out of their range; None is in each but that of `early`."""
        check_count("Limits", "early", self.early)
        for name, count, least in (
            ("replays", self.replays, 0),
            ("max_age", self.max_age, 1),
            ("check_every", self.check_every, 1),
        ):
            if count is not None:
                check_count("Limits", name, count, least=least)
        if self.clip is not None:
            check_number("Limits", "clip", self.clip, least=1.0, mend="None is for no bound.")
        if self.excite is not None:
            check_number("Limits", "excite", self.excite, least=0.0, mend="0 is for no dither.")

    def checks_within(self, steps: int, learns: bool = False) -> int:
        """Count the checked steps among the first `steps`, as `checks` gives them."""
        every = self.check_every
        if every is None or steps < 1:
            return 0
        return steps // every + (every > FIRST_CHECK <= steps) + (learns and every > 1)

    def checks(self, step: int, learns: bool = False) -> bool:
        """Say whether a step, from 0, is checked; `learns` says that a tangent learns."""
        every = self.check_every
        return every is not None and (
            (step + 1) % every == 0 or step + 1 == FIRST_CHECK < every or (learns and step == 0)
        )
