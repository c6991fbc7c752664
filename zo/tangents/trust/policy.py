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
    Without probes, it is also lost when the changes of the rows' own losses are unlike the predicted ones
    (`agreement_of_rows`); with fewer than four rows instead when the change is far larger, or when the error
    of the tangents' prediction of the boxes' responses in the check exceeds `missed`. The cheapest remedy
    that is left is then taken, and the next one if that does not help: tangents that can learn longer do;
    another kind learns beside them if there is one; then the probes double, starting from one, as far as the
    gradient's `max_rows` allows. Each time a `TangentWarning` names the remedy and its cost; if none is left,
    it says so once. When the mean is below `regained` and the last check was good, trust is regained, and the
    probes halve down to the number that the gradient was created with.

    Probes that were added because a check without probes found fault are not taken back by predictions: with
    probes these are good, whatever was wrong without. They stay until a check finds no fault in a step that
    goes without them, a trial; where it does, twice as many checks pass before the next trial. The same holds
    for any probes where trust that had returned is lost again. That is said once, with what a step may cost
    from then on.

    Where a check finds no fault, but the loss changes by more than twice what the gradient says, over a tenth
    of the way too, the gradient is far too short: two such checks are said, once, and nothing is done.

    What the loss changes by beyond the boxes' own responses is no fault of tangents: part of the gradient is
    cut off elsewhere. Until a check has shown the gradient whole, one that finds more missing than is there
    says so.

    A box that gives the base's very answers in most of the rows whose input a check or probes have moved is
    constant in pieces: that is said once, no probes are added, and checks come ten times more rarely.

    The error is judged every `average` steps. It counts as falling while it is a tenth lower than the last
    time, which gives a tangent time to learn. The first step does not count, as nothing had been learned.

    Measured on rollouts of 8 solver steps. On a corrected wake flow, tangents that trained about as well as
    the true derivative had errors of .05 to .14 (512 cells) and .19 (2,048) and agreements above .9; the
    identity, a sixth worse, had .33 and .5 to .9. On Kuramoto-Sivashinsky (64 cells, chaotic), errors of .05
    to .12 trained well, and .15 was no better than no training through the solver. Errors of .23 to .35, from
    tangents that do not follow the state or have too few probes, were worse, with agreements down to -.1.

    Attributes:
        lost: the relative error of predicted responses above which trust is lost.
        regained: the relative error of predicted responses below which it is regained.
        lost_values: without probes, the relative error of predicted values above which trust is lost; it says
            less about derivatives. Trust is regained as far below it as `regained` is below `lost`.
        agreement: the least measured change of the loss, as a share of the predicted one: 1 is right, 0 or
            less means that a step against the gradient would not lower the loss. Without probes, where
            `agreement_of_rows` is not known, the share must not exceed 2 - agreement either.
        agreement_of_rows: without probes, and with at least four rows in the batch, the least cosine of the
            measured changes of the rows' own losses along the gradient and the predicted ones.
        missed: without probes, and with fewer rows, the relative error of J d in a check above which trust is
            lost.
        check_every: steps between checks, each of one query, with a first one after ten; None for none. Of
            tangents that learn from values alone the first step whose gradient is used is checked too, and
            the next four until a check finds no fault, if `max_rows` has room for a query in each step; where
            one finds fault, the step takes the gradient times its agreement, between -1 and 1. After the
            first that finds a fault, one more query shows whether the boxes are noisy. Where they are not,
            each that finds a fault is decided by another query, a tenth as far.
        outliers: whether an answer that is ten standard deviations off, from all answers so far and from what
            was predicted, is not learned from where no other one came in fifty steps.
        average: steps over which the mean forgets, exponentially, and between two verdicts.

    Raises:
        ConfigurationError: a value is out of range.
    """

    lost: float = 0.25
    regained: float = 0.2
    lost_values: float = 1.0
    agreement: float = 0.5
    agreement_of_rows: float = 0.95
    missed: float = 0.5
    check_every: int | None = 25
    average: int = 10
    outliers: bool = True

    def __post_init__(self) -> None:
        """Refuse what would never, or always, be lost."""
        check_positive("TrustPolicy", "lost", self.lost)
        check_number("TrustPolicy", "regained", self.regained, above=0, most=self.lost)
        check_positive("TrustPolicy", "lost_values", self.lost_values)
        mend = "0.5 is half of what the gradient says."
        check_number("TrustPolicy", "agreement", self.agreement, mend=mend)
        check_number("TrustPolicy", "agreement_of_rows", self.agreement_of_rows, most=1)
        check_positive("TrustPolicy", "missed", self.missed)
        check_count("TrustPolicy", "average", self.average)
        if self.check_every is not None:
            check_count("TrustPolicy", "check_every", self.check_every)

    def checks_within(self, steps: int, guesses: bool = False) -> int:
        """How many of so many steps are checked: `checks`, counted."""
        every = self.check_every
        if every is None or steps < 1:
            return 0
        return steps // every + (every > FIRST_CHECK <= steps) + (guesses and every > 1)

    def checks(self, step: int, guesses: bool = False) -> bool:
        """Whether a step, from 0, is one of those that are checked; `guesses`: of tangents of values."""
        every = self.check_every
        return every is not None and (
            (step + 1) % every == 0 or step + 1 == FIRST_CHECK < every or (guesses and step == 0)
        )
