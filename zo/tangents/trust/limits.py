"""`Limits`: how far a gradient goes, and how often it is checked, for those who want it otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blackbox.checks import check_count, check_number
from zo.tangents.trust.thresholds import Thresholds

FIRST_CHECK = 10  # steps, where checks are rarer: a tenth of a short run


@dataclass(frozen=True)
class Limits:
    """How far a `TangentGradient` goes by what its tangents know, and how often that is checked.

    The defaults were measured together: change one for a reason, and compare a held-out loss.

    Attributes:
        replays: how many replays may follow each step, see `TangentGradient.replay`; None for as many as are
            trusted, which is none with a `StudentTangent`.
        max_age: the number of windows that are kept to be replayed, the oldest going; None for the last
            third of all so far, and at least twenty. They take at most 1 GiB, and an eighth of the memory.
        clip: the longest gradient that is added to `.grad`, in multiples of the median length of those of the
            last 25 steps: a longer one is shortened to that, for a tangent where it has not been may be wrong
            by orders of magnitude (`counts.clipped`). Where what is cut off goes one way, as of rows of a
            rare kind, they may be longer from then on, which is said. Where a third of them are far longer,
            or one of several that are added up was shortened, that is said once. None for no bound, as where
            no tangent learns from values, and where several batches make one step of the optimiser.
        excite: the size of the dither of inputs whose derivative values do not show, in multiples of their
            spread: an action that is a function of the observation, or one design for all rows. The box is
            asked a little beside them, for no further row, and the objective gets the answer less the
            tangent's own response to that. None for a size that is found, 0 for no dither. See
            docs/concepts/closed_loop.md.
        check_every: steps between checks, each of one query, with a first one after ten; None for none. Of
            tangents that learn the first step whose gradient is used is checked too; where that finds fault,
            the step takes the gradient times its agreement, between -1 and 1. After the first that finds a
            fault, one more query shows whether the boxes are noisy. Where they are not, each that finds a
            fault is decided by another query, a tenth as far.
        early: steps at the beginning that are each checked so until a check finds no fault; 1 where rows are
            counted, as in a run with a budget.
        outliers: whether an answer that is ten standard deviations off, from all answers so far and from what
            was predicted, is not learned from where no other one came in fifty steps.

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
        """How many of so many steps are checked: `checks`, counted."""
        every = self.check_every
        if every is None or steps < 1:
            return 0
        return steps // every + (every > FIRST_CHECK <= steps) + (learns and every > 1)

    def checks(self, step: int, learns: bool = False) -> bool:
        """Whether a step, from 0, is one of those that are checked; `learns`: of tangents that learn."""
        every = self.check_every
        return every is not None and (
            (step + 1) % every == 0 or step + 1 == FIRST_CHECK < every or (learns and step == 0)
        )
