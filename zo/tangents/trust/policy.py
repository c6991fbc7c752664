"""`TrustPolicy`: the limits of trust in tangents, and when they are looked at."""

from __future__ import annotations

from dataclasses import dataclass

from blackbox.checks import check_count, check_number, check_positive

FIRST_CHECK = 10  # steps, where checks are rarer: a tenth of a short run


@dataclass(frozen=True)
class TrustPolicy:
    """When trust in tangents is lost and regained.

    Trust is lost when the mean relative error of the predictions is above `lost` and stops falling, or when a
    check measures a change of the loss along the gradient of less than `agreement` times the predicted one.
    It is also lost when the changes of the rows' own losses are unlike the predicted ones
    (`agreement_of_rows`); with fewer than four rows instead when the change is far larger, or when the error
    of the tangents' prediction of the boxes' responses in the check exceeds `missed`. The first remedy that
    is left is then taken, and the next one if that does not help; none takes a row. Inputs that values do not
    identify are dithered; tangents that can learn longer do; another kind learns beside them if there is one.
    Each time a `TangentWarning` names the remedy; if none is left, it says so once. When the mean is below
    `regained` and the last check was good, trust is regained.

    Where a check finds no fault, but the loss changes by more than twice what the gradient says, over a tenth
    of the way too, the gradient is far too short: two such checks are said, once, and nothing is done.

    What the loss changes by beyond the boxes' own responses is no fault of tangents: part of the gradient is
    cut off elsewhere. Until a check has shown the gradient whole, one that finds more missing than is there
    says so.

    A box that gives the base's very answers in most of the rows whose input a check has moved is constant in
    pieces: that is said once, and checks come ten times more rarely.

    The error is judged every `average` steps. It counts as falling while it is a tenth lower than the last
    time, which gives a tangent time to learn. The first step does not count, as nothing had been learned.

    Attributes:
        lost: the relative error of predicted values above which trust is lost.
        regained: the relative error of predicted values below which it is regained.
        agreement: the least measured change of the loss, as a share of the predicted one: 1 is right, 0 or
            less means that a step against the gradient would not lower the loss. Where `agreement_of_rows` is
            not known, the share must not exceed 2 - agreement either.
        agreement_of_rows: with at least four rows in the batch, the least cosine of the measured changes of
            the rows' own losses along the gradient and the predicted ones.
        missed: with fewer rows, the relative error of J d in a check above which trust is lost.
        check_every: steps between checks, each of one query, with a first one after ten; None for none. Of
            tangents that learn the first step whose gradient is used is checked too; where that finds fault,
            the step takes the gradient times its agreement, between -1 and 1. After the first that finds a
            fault, one more query shows whether the boxes are noisy. Where they are not, each that finds a
            fault is decided by another query, a tenth as far.
        early: steps at the beginning that are each checked so until a check finds no fault; 1 where rows are
            counted, as in a run with a budget.
        outliers: whether an answer that is ten standard deviations off, from all answers so far and from what
            was predicted, is not learned from where no other one came in fifty steps.
        average: steps over which the mean forgets, exponentially, and between two verdicts.

    Raises:
        ConfigurationError: a value is out of range.
    """

    lost: float = 1.0
    regained: float = 0.8
    agreement: float = 0.5
    agreement_of_rows: float = 0.95
    missed: float = 0.5
    check_every: int | None = 25
    early: int = 5
    average: int = 10
    outliers: bool = True

    def __post_init__(self) -> None:
        """Refuse what would never, or always, be lost."""
        check_positive("TrustPolicy", "lost", self.lost)
        check_number("TrustPolicy", "regained", self.regained, above=0, most=self.lost)
        mend = "0.5 is half of what the gradient says."
        check_number("TrustPolicy", "agreement", self.agreement, mend=mend)
        check_number("TrustPolicy", "agreement_of_rows", self.agreement_of_rows, most=1)
        check_positive("TrustPolicy", "missed", self.missed)
        check_count("TrustPolicy", "early", self.early)
        check_count("TrustPolicy", "average", self.average)
        if self.check_every is not None:
            check_count("TrustPolicy", "check_every", self.check_every)

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
