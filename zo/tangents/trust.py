"""Trust: when the tangents of a gradient are not trusted any more, and what is done about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blackbox.checks import check_count, check_number, check_positive
from blackbox.notices import warn
from blackbox.words import counted
from zo.errors import TangentWarning
from zo.tangents.cut import is_uneven

WORST = 10.0  # errors above count as this: one step in which nothing is known is not all that counts
FIRST_CHECK = 10  # steps, where checks are rarer: a tenth of a short run
EARLY = 5  # steps that are each checked until a check finds no fault: at first little is known
FALL = 0.1  # an error that falls by less between two verdicts falls no more
FLAT = 0.5  # of the rows whose input changed, that gave the same answer: then the box is constant in pieces
RARELY = 10  # times as many steps between checks of such a box
UNLIKE = 1e-5  # of the loss: what the same rows may differ by when they are asked again, as sums are rounded
HELD_OUT = "zo.KeepBest, or a run's validation"
SEVERAL = 25  # steps that the remedies of tangents take
UNTOLD = 3  # checks in a row that showed nothing, since rows failed: after these it is said
CONTROL = (
    " Where tangents are in doubt, the gradient that is cut at the boxes (no-gradient) may train better and "
    "takes no more rows: compare, see docs/howto/trust.md."
)
ADVICE = {  # where probes do not help, and the classes of tangents that have it already
    "put SecantTangent outermost (secant), ": ("SecantTangent", "AutoTangent"),
    "take a StudentTangent (student), ": ("StudentTangent",),
}


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
            tangents that learn from values alone the first step is checked too, and the next four until a
            check finds no fault, if `max_rows` has room for a query in each step; where one finds fault, the
            step takes the gradient times its agreement, between -1 and 1. After the first that finds a fault,
            one more query shows whether the boxes are noisy. Where they are not, each that finds a fault is
            decided by another query, a tenth as far.
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

    def checks(self, step: int, guesses: bool = False) -> bool:
        """Whether a step, from 0, is one of those that are checked; `guesses`: of tangents of values."""
        every = self.check_every
        return every is not None and (
            (step + 1) % every == 0 or step + 1 == FIRST_CHECK < every or (guesses and step == 0)
        )


@dataclass
class _State:
    """What a resumed run must know."""

    probes: int
    total: float = 0.0  # of errors, each weighted by its age
    weight: float = 0.0
    steps: int = -1  # with this many probes, the first of all apart
    learned: bool = False  # the first step is over
    agreement: float | None = None  # of the last check
    missed: float | None = None  # of the last check
    of_rows: float | None = None  # `agreement_of_rows` of the last check
    checked: int | None = None  # the step of the last check
    fresh: bool = False  # that check was made with this many probes
    before: float | None = None  # the mean when it was last judged
    passed: bool = False  # a check has found no fault
    lost: bool = False
    warned: bool = False
    told_control: bool = False
    noise: float | None = None  # see `Check.noise`
    untold: int = 0  # checks in a row that showed nothing, since rows failed
    flat: bool = False  # the box was constant in pieces when it was last asked
    told_flat: bool = False
    told_digits: bool = False
    narrow: bool = False  # a check showed nothing, since the network computes in 16 bits
    told_noise: bool = False
    told_unmoved: bool = False
    whole: bool = False  # a check has found nothing missing from the gradient, which is as the objective is
    cut: bool = False  # or something
    beside: bool = True  # a way from the weights to the loss passes no box


@dataclass(frozen=True)
class Check:
    """What a query along the gradient has shown; all None where there was no check.

    Attributes:
        agreement: the change of the loss over what the gradient predicts, 1 for the true gradient; None if
            it is not known: the gradient is zero, the boxes are noisy, or too many rows failed.
        agreement_of_rows: the cosine of the changes of the rows' own losses and what the tangents predict of
            each, 1 for the true gradient; None where there are fewer than four rows, `missed` is not known,
            or a call's rows are not rows of the batch.
        missed: the relative error of the tangents' J d as a prediction of the boxes' responses; None where
            nothing changed, or the boxes are noisy.
        rows: how many rows the boxes were asked for.
        queries: how many queries were made.
        noise: the standard deviation of the change of the mean loss when nothing is changed; None where that
            is not known yet.
        failed: the share of rows that failed here and not in the base, where it was too large to judge by, or
            they had most of the gradient.
        flat: of the rows of calls whose input was changed, the share that gave the base's very answer; None
            where nothing was changed, or that is not known.
        digits: significant digits of the boxes' answers, where these are so few that the query shows nothing.
        narrow: the dtype of numbers of 16 bits between weights and loss, for which the query shows nothing.
        unlike: the noise as a share of the loss, in the check that has measured it.
        balance: the agreement with the boxes' own responses in the place of the tangents': 1 where autograd
            saw all that the loss depends on, but for curvature; None where that is not known.
        cut: how many times its length the gradient lacks, along itself; None for nothing that shows.
    """

    agreement: float | None = None
    missed: float | None = None
    agreement_of_rows: float | None = None
    rows: int = 0
    queries: int = 0
    noise: float | None = None
    failed: float | None = None
    flat: float | None = None
    digits: int | None = None
    narrow: str | None = None
    unlike: float | None = None
    balance: float | None = None
    cut: float | None = None


class TrustWatch:
    """Keeps a gradient's trust from step to step and says how many probes the next one needs.

    Args:
        policy: the limits of trust, and when they are looked at.
        probes: how many to begin with, and the fewest.
        max_rows: what a step may cost on average, checks included, in multiples of the base's rows; at the
            least what the base, these probes and the checks take.
        learning: whether more probes can help any tangent.
        guesses: whether a tangent learns from values: then early steps without probes are checked, and where
            a check finds fault its step takes a share of the gradient.
        kinds: names of the tangents' classes, which are not advised.
        last: how many steps there will be; None where that is not known.
    """

    def __init__(
        self,
        policy: TrustPolicy,
        probes: int,
        max_rows: float,
        learning: bool = True,
        kinds: Sequence[str] = (),
        guesses: bool = False,
        last: int | None = None,
    ) -> None:
        checks = 1 / policy.check_every if policy.check_every else 0.0
        self.policy = policy
        self.given = max_rows  # as the user knows it, for messages
        self.max_rows = max(max_rows, 1 + probes + checks)
        self.fewest = probes
        self.most = max(probes, int(max_rows - 1 - checks)) if learning else probes
        self.learning, self.kinds, self.guesses = learning, kinds, guesses
        self.last = last
        self._state = _State(probes)

    @property
    def probes(self) -> int:
        """How many probes the next step has."""
        return self._state.probes

    @property
    def limit(self) -> float:
        """The error above which trust is lost: of responses, or without probes of values."""
        return self.policy.lost if self._state.probes else self.policy.lost_values

    @property
    def lost(self) -> bool:
        """Whether trust is lost."""
        return self._state.lost

    @property
    def flat(self) -> bool:
        """Whether the box was constant in pieces when it was last asked: checks and probes show nothing."""
        return self._state.flat

    def checks(self, step: int) -> bool:
        """Whether a step, from 0, is checked; ten times more rarely where checks show nothing.

        That is where the box is constant in pieces, or the network computes in 16 bits.
        """
        every, state = self.policy.check_every, self._state
        if every is None or ((state.flat or state.narrow) and (step + 1) % (RARELY * every)):
            return False
        early = self.guesses and not state.probes
        again = early and step < EARLY and not state.passed and self.max_rows >= 2
        return again or self.policy.checks(step, early)

    def share(self, check: Check) -> float:
        """The factor of a step's gradient, after a check.

        Where it finds fault, by the agreement, from -1 to 1: what is left is the true gradient's projection
        on it, which is never longer than that, and never leads uphill.
        """
        if check.agreement is None or not (self.guesses and self.doubts(check)):
            return 1.0
        return min(max(check.agreement, -1.0), 1.0)

    @property
    def noise(self) -> float | None:
        """The noise of the mean loss, see `Check.noise`."""
        return self._state.noise

    def may_be_cut(self, check: Check) -> bool:
        """Whether part of the gradient may be missing: it is looked at until a check has shown it whole."""
        return not (self._state.whole or self._state.cut) and is_uneven(check.balance)

    def doubts(self, check: Check) -> bool:
        """Whether a check finds fault."""
        return bool(self._faults(check))

    def _faults(self, check: Check) -> list[str]:
        """The limits that a check breaks."""
        policy, of_rows = self.policy, check.agreement_of_rows
        most = math.inf if self._state.probes or of_rows is not None else 2 - policy.agreement
        broken = []
        cut = self._state.cut or check.cut is not None  # the loss changes by what no tangent predicts
        if check.agreement is not None and not cut and not policy.agreement <= check.agreement <= most:
            broken.append("agreement")  # a model of values may predict too little too
        if self._state.probes:
            return broken
        if of_rows is not None:
            if of_rows < policy.agreement_of_rows:
                broken.append("agreement_of_rows")  # or be wrong where the errors of rows cancel
        elif check.missed is not None and check.missed > policy.missed:
            broken.append("missed")  # or where the loss is flat
        return broken

    @property
    def _last(self) -> Check:
        """The last check that showed something."""
        state = self._state
        return Check(state.agreement, state.missed, state.of_rows)

    @property
    def error(self) -> float | None:
        """The running mean of the relative error; None before there is one."""
        return self._state.total / self._state.weight if self._state.weight else None

    def saw(
        self,
        step: int,
        error: float | None,
        check: Check = Check(),
        improve: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Take in what a step has shown, and act.

        Args:
            step: the number of the step.
            error: relative error of the tangents' predictions; None if there was nothing to predict.
            check: the check of the step; its `flat` may be that of the probes.
            improve: asked, where trust is lost, for what tangents do now that takes no more rows, in words.

        Warns:
            TangentWarning: trust is lost, by which limit, and what is done about it: tangents learn longer,
                another kind is tried, probes are added, or nothing is left within `max_rows`. Or three checks
                in a row showed nothing. Or the box is constant in pieces, or its answers have too few digits
                for a check, or are others when it is asked the same again, each of which is said once.
        """
        state = self._state
        if check.flat is not None:
            self._take_flat(step, check.flat)
        if check.digits is not None and not state.told_digits:
            state.told_digits = True
            _warn(
                f"Step {step + 1}: expected answers that show a change of the loss by a hundredth, the box's "
                f"answers have {counted(check.digits, 'digit')}: print more (%.17g prints all). Checks that "
                "cannot distinguish the gradient's effect from the last digit say nothing of the tangents: "
                f"watch a held-out loss ({HELD_OUT}).",
                frames=4,
            )
        if check.narrow is not None and not state.narrow:
            state.narrow = True
            _warn(
                f"Step {step + 1}: expected float32 or float64 between the weights and the loss, got "
                f"{check.narrow}, which rounds away what a check along the gradient changes. Checks show "
                "nothing of the tangents then, and come ten times more rarely: watch a held-out loss "
                f"({HELD_OUT}), or leave out autocast.",
                frames=4,
            )
        if check.unlike is not None and check.unlike > UNLIKE and not state.told_noise:
            state.told_noise = True
            _warn(
                f"Step {step + 1}: expected the same answers where the boxes are asked the same rows again, "
                f"got a mean loss that differs by {check.unlike:.1e} of it. A box is noisy, or has a state "
                "that goes on from call to call, such as a warm start, a counter or a buffer: `blackbox "
                "check` tells which. Noise is averaged over rows and steps; a state is not, and its part of "
                "the gradient is wrong: reset it in each call, or make it an input and an output. Checks "
                f"along the gradient show nothing that is smaller: watch a held-out loss ({HELD_OUT}).",
                frames=4,
            )
        if check.cut is not None and not state.cut:
            state.cut = True
            _warn(
                f"Step {step + 1}: expected the loss along the gradient to change by what autograd says for "
                f"the boxes' own answers, got {1 + check.cut:.3g} times that: part of the gradient is cut "
                "off between the weights and the loss, as by a .detach(), an .item(), NumPy, a "
                "torch.no_grad() or an output of whole numbers. No tangent mends that. Where you cut it on "
                "purpose, as at a fixed target, leave it; otherwise take the cut out, or take "
                "zo.LossGradient, which goes by the loss itself.",
                frames=4,
            )
        state.whole |= check.balance is not None and not is_uneven(check.balance)
        state.steps += 1
        state.noise = state.noise if check.noise is None else check.noise
        if error is not None and state.learned:
            keep = 1.0 - 1.0 / self.policy.average
            state.total = keep * state.total + (1.0 - keep) * (error if error < WORST else WORST)  # or NaN
            state.weight = keep * state.weight + (1.0 - keep)
        state.learned |= error is not None
        if check.agreement is not None:
            state.agreement, state.missed = check.agreement, check.missed
            state.of_rows, state.checked = check.agreement_of_rows, step
            state.fresh, state.untold = True, 0
            state.passed |= not self.doubts(check)
        elif check.failed is not None:
            state.untold += 1
            if state.untold == UNTOLD:
                _warn(
                    f"Step {step + 1}: expected at most a tenth of a check's rows to fail, and none with "
                    f"most of the gradient, {check.failed:.0%} did, and the last {UNTOLD} checks showed "
                    "nothing. Until one does, trust rests on predictions alone: watch a held-out loss "
                    f"({HELD_OUT}), and see the black box's ledger.",
                    frames=4,
                )
        if state.flat and state.probes:
            return  # what they show of such a box is no error of the tangents
        due = state.steps > 0 and state.steps % self.policy.average == 0
        if due or (check.agreement is not None and state.steps >= self.policy.average):
            self._judge(step, due, improve)

    def knows_nothing_of(self, step: int, inputs: Sequence[str]) -> None:
        """Take in inputs whose derivative values do not show and that may not be dithered; buy a probe.

        Args:
            step: the number of the step.
            inputs: which, in words.

        Warns:
            TangentWarning: says so, and what is done about it.
        """
        more = max(self._state.probes, min(1, self.most))
        found = (
            f"Step {step + 1}: expected inputs that weights move to differ between rows by more than the "
            f"other inputs determine, got {'; and '.join(inputs[:3])}{' and others' if inputs[3:] else ''}: "
            "the same in all rows, or a function of the others, and without dither (excite=0, or bounds that "
            "leave no room). Values show nothing of that derivative: what a tangent says of it is chance."
        )
        if more > self._state.probes:
            self._state.lost = True
            _warn(f"{found} {self._cost(more)}")
            self._take(more)
        else:
            _warn(
                f"{found} Leave excite out, give wider bounds, add a little noise in each row, or allow "
                f"probes: max_rows={self.max_rows:g} allows none.",
            )

    def probes_moved_nothing(self, step: int, zero: bool) -> None:
        """Take in that no probe of a later step changed an input of a box, and take back those bought.

        Args:
            step: the number of the step.
            zero: whether the gradient of the step is exactly zero.

        Warns:
            TangentWarning: says so, once, and what the gradient then is.
        """
        if self._state.probes > self.fewest:
            self._take(self.fewest)
        if self._state.told_unmoved:
            return
        self._state.told_unmoved = True
        gradient = (
            "is exactly zero, and no weight moves but by the optimiser's memory"
            if zero
            else "is the tangents' alone"
        )
        _warn(
            f"Step {step + 1}: expected probes to change an input of a box, got the base's. They show "
            "nothing, so none are asked beyond those of the start. Either the layer before the box is "
            "saturated, as tanh is far from zero, or its numbers are so large that mu is lost in rounding. "
            f"The gradient of this step {gradient}. Training goes on: watch a held-out loss ({HELD_OUT}), "
            "lower the learning rate, or keep what that layer is given small, by a norm or a penalty.",
            frames=4,
        )

    def note_way_beside(self, there_is: bool) -> None:
        """Take in whether some way from the weights to the loss passes no box."""
        self._state.beside = there_is

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and the probes."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._state = _State(**state)

    def _judge(self, step: int, due: bool, improve: Callable[[], Sequence[str]]) -> None:
        """`due`: the error too, which a check in between does not make old enough."""
        policy, state, error = self.policy, self._state, self.error
        against = self.doubts(self._last)
        stays = good = False
        if due and error is not None:
            stays = state.before is not None and error > max(self.limit, (1.0 - FALL) * state.before)
            good = error < policy.regained / policy.lost * self.limit
            state.before = error
        if stays or (against and state.fresh):
            state.lost = True
            more = state.probes if state.flat else min(max(2 * state.probes, 1), self.most)
            if self.last is not None and step + 1 >= self.last:  # no remedy would do anything
                words = (
                    "This is the last step, so nothing is done about it: judge the weights by held-out data."
                )
                if not state.warned:
                    _warn(f"{self._broken(step)}. {words}{self._control()}")
                return
            remedies = improve()
            if remedies:
                words = f"{self._broken(step)}. From now on {' and '.join(remedies)}, for no more rows."
                _warn(f"{words}{self._left(step)}{self._control()}")
                self._take(state.probes)
            elif more > state.probes:
                _warn(f"{self._broken(step)}. {self._cost(more)}{self._left(step)}{self._control()}")
                self._take(more)
            elif not state.warned:
                state.warned = True
                _warn(f"{self._broken(step)}. {self._stuck()}")
        elif good and not against:
            state.lost = state.warned = False
            if state.probes > self.fewest:
                self._take(max(state.probes // 2, self.fewest))

    def _control(self) -> str:
        """What takes no more rows and may train better: said once, and where it trains anything."""
        told, self._state.told_control = self._state.told_control, True
        return CONTROL if self._state.beside and not told else ""

    def _left(self, step: int) -> str:
        """How many steps are left, where a remedy says that it takes more."""
        left = SEVERAL if self.last is None else self.last - step - 1
        return (
            f" There {'is' if left == 1 else 'are'} {counted(left, 'step')} left." if left < SEVERAL else ""
        )

    def _take_flat(self, step: int, share: float) -> None:
        """Note whether the box is constant in pieces, and say so once."""
        state = self._state
        state.flat = is_flat(share)
        if not state.flat:
            return
        if state.probes > self.fewest:
            self._take(self.fewest)
        if not state.told_flat:
            state.told_flat = True
            every = self.policy.check_every
            rest = f", and there is a check in every {RARELY * every} steps alone" if every else ""
            student = "" if "StudentTangent" in self.kinds else " Take a StudentTangent, for its values."
            _warn(
                f"Step {step + 1}: expected a box that answers a little otherwise where its input is moved a "
                f"little, got the very same answers in {share:.0%} of the rows: it is constant in pieces, as "
                "trees, tables, labels and rounded outputs are. What is asked beside training's own rows "
                f"shows nothing of it, so no probes are added{rest}.{student} Whether the tangent's slopes "
                f"are of use only a held-out loss says ({HELD_OUT}).",
            )

    def _take(self, probes: int) -> None:
        """Other probes show other errors, so the mean begins anew; with none they are of something else."""
        state = self._state
        if bool(probes) != bool(state.probes):
            state.before = state.agreement = state.missed = state.of_rows = None
        state.probes, state.steps, state.total, state.weight, state.fresh = probes, 0, 0.0, 0.0, False

    def _broken(self, step: int) -> str:
        """Which limits are broken, and by how much."""
        policy, state, error = self.policy, self._state, self.error
        broken = []
        if error is not None and error > self.limit:
            what, taken = ("responses", f" with {_probes(state.probes)}") if state.probes else ("values", "")
            broken.append(
                f"tangents to predict the boxes' {what} with a relative error of at most {self.limit:g}, "
                f"found {_above(error, self.limit)} over the last steps{taken}"
            )
        faults = self._faults(self._last)
        if "agreement" in faults and state.agreement is not None:
            low, high = policy.agreement, 2 - policy.agreement
            limit = f"least {low:g}" if state.agreement < low else f"most {high:g}"
            broken.append(
                f"the loss along the gradient to change by at {limit} times what the gradient says, found "
                f"{state.agreement:.3g} times"
            )
        if "agreement_of_rows" in faults:
            broken.append(
                "the rows' own losses to change along the gradient as the tangents say of each, with a "
                f"cosine of at least {policy.agreement_of_rows:g}, found {state.of_rows:.3g}"
            )
        if "missed" in faults:
            broken.append(
                "tangents to predict the boxes' responses along the gradient with a relative error of at "
                f"most {policy.missed:g}, found {state.missed:.3g}"
            )
        if faults and state.checked not in (None, step):
            broken[-1] += f" (in the check of step {state.checked + 1})"
        return f"Step {step + 1}: expected {'; and '.join(broken)}"

    def _cost(self, probes: int) -> str:
        return (
            f"From now on {_probes(probes)} until trust returns: a step asks the boxes for {1 + probes} "
            f"times the rows of a first-order step instead of {1 + self.probes}, within "
            f"max_rows={self.given:g}."
        )

    def _stuck(self) -> str:
        state, risk = self._state, "Training may be worse than none"
        far = state.agreement is not None and state.agreement > 2 - self.policy.agreement
        if far and "agreement" in self._faults(self._last):
            risk = "The loss falls along the gradient, by more than it says; Adam's steps ignore its length"
        words = (
            f"{risk}: watch a held-out loss ({HELD_OUT}). Move the network less in a step; use LossGradient "
            "with sparse coordinates (sparse-cge); or "
        )
        if not self.learning:
            return words + "take a tangent that learns."
        if state.flat:  # of which probes show nothing
            return f"{words}prefit the tangent on more of the box's answers, or take another kind."
        if not self.probes:
            return (
                f"{words}prefit the tangent on more of the box's answers, take another kind, or allow "
                f"probes: max_rows={self.given:g} allows none."
            )
        more = 1 + 2 * self.probes
        other = "".join(words for words, kinds in ADVICE.items() if not set(kinds).intersection(self.kinds))
        return (
            f"{words}{other}{'or ' if other else ''}allow more probes: max_rows={self.given:g} allows no "
            f"more, {2 * self.probes} of them take {more} times the rows of a first-order step."
        )


def is_flat(share: float | None) -> bool:
    """Whether so many of the rows that were moved gave the same answer that the box is constant in pieces."""
    return share is not None and share > FLAT


def _probes(number: int) -> str:
    return counted(number, "probe")


def _warn(words: str, frames: int = 5) -> None:
    warn(words, TangentWarning)  # the caller of backward


def _above(value: float, limit: float) -> str:
    """A value above a limit, in as many digits as show that it is: 1.0004 is no 1."""
    for digits in range(3, 17):
        if float(f"{value:.{digits}g}") > limit:
            return f"{value:.{digits}g}"
    return f"{value!r}"
