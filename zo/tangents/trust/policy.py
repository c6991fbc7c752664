"""`TrustPolicy`: when a tangent is no longer to be trusted, and what is done then."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from blackbox.checks import check_count, check_number, check_positive
from zo.errors import ConfigurationError, TangentWarning

WORST = 10.0  # errors above count as this: one step in which nothing is known is not all that counts
FALL = 0.1  # an error that falls by less between two verdicts falls no more


@dataclass(frozen=True)
class TrustPolicy:
    """When trust in tangents is lost and regained, and how many probes that may cost.

    Trust is lost when the mean of the prediction's relative error is above `lost` and falls no more, or when
    in a check the loss changed along the gradient by less than `agreement` of what the gradient says. Then
    the probes double, and again if that does not help, up to `most_probes`; there a `TangentWarning` is
    given, once. When the mean is below `regained` and the last check was good, trust is regained, and the
    probes halve down to those that the gradient was made with.

    The error is judged every `average` steps, and it falls while it is a tenth lower than the last time: so a
    tangent has the time to learn. The first step counts for nothing, as nothing had been learned.

    Measured on rollouts of 8 solver steps. A corrected wake flow: tangents that trained about as well as the
    true derivative came to errors of .05 to .14 (512 cells) and .19 (2,048) and to agreements above .9, the
    identity, a sixth worse, to .33 and .5 to .9. Kuramoto-Sivashinsky (64 cells, chaotic): errors of .05 to
    .12 trained well, .15 was no better than no training through the solver, and .23 to .35, those of
    tangents that do not follow the state or have too few probes, were worse, with agreements down to -.1.

    Attributes:
        lost, regained: relative errors of predicted responses.
        lost_values: without probes, that of predicted values, which says less about derivatives; regained
            as far below it.
        agreement: the share of the change that the gradient foretells which must be there: 1 where it is
            right, 0 or less where a step against it would not lower the loss.
        most_probes: that trust may cost; those that the gradient was made with are never cut.
        check_every: steps between checks, each of one query; None for none.
        average: steps over which the mean forgets, exponentially, and between two verdicts.

    Raises:
        ConfigurationError: a value out of its range.
    """

    lost: float = 0.25
    regained: float = 0.2
    lost_values: float = 1.0
    agreement: float = 0.5
    most_probes: int = 16
    check_every: int | None = 25
    average: int = 10

    def __post_init__(self) -> None:
        """Refuse what would never, or always, be lost."""
        check_positive("TrustPolicy", "lost", self.lost)
        check_number("TrustPolicy", "regained", self.regained, above=0, most=self.lost)
        check_positive("TrustPolicy", "lost_values", self.lost_values)
        number = isinstance(self.agreement, float | int) and not isinstance(self.agreement, bool)
        if not number or not math.isfinite(self.agreement):
            raise ConfigurationError(
                f"TrustPolicy, agreement: expected a finite number, got {self.agreement!r}. 0 asks that a "
                "step lowers the loss, 1 that it does so by as much as the gradient says."
            )
        check_count("TrustPolicy", "most_probes", self.most_probes)
        check_count("TrustPolicy", "average", self.average)
        if self.check_every is not None:
            check_count("TrustPolicy", "check_every", self.check_every)

    def checks(self, step: int) -> bool:
        """Whether a step, from 0, is one of those that are checked."""
        return self.check_every is not None and (step + 1) % self.check_every == 0


@dataclass
class _State:
    """What a resumed run must know."""

    probes: int
    total: float = 0.0  # of errors, each weighted by its age
    weight: float = 0.0
    steps: int = -1  # with this many probes, the first of all apart
    learned: bool = False  # the first step is over
    agreement: float | None = None  # of the last check
    fresh: bool = False  # that check was made with this many probes
    before: float | None = None  # the mean when it was last judged
    lost: bool = False
    warned: bool = False


class TrustWatch:
    """Keeps a gradient's trust from step to step and says how many probes the next one needs.

    Args:
        policy: when to act.
        probes: to begin with, and the fewest.
        learning: whether more of them can help any tangent.
    """

    def __init__(self, policy: TrustPolicy, probes: int, learning: bool = True) -> None:
        self.policy = policy
        self.fewest = probes
        # Twice no probes is none, and what learns from values alone may not learn from them either.
        self.most = max(probes, policy.most_probes) if probes and learning else probes
        self.learning = learning
        self.limit = policy.lost if probes else policy.lost_values
        self._state = _State(probes)

    @property
    def probes(self) -> int:
        """For the next step."""
        return self._state.probes

    @property
    def lost(self) -> bool:
        """Whether trust is lost."""
        return self._state.lost

    @property
    def error(self) -> float | None:
        """The running mean of the relative error; None before there is one."""
        return self._state.total / self._state.weight if self._state.weight else None

    def saw(self, step: int, error: float | None, agreement: float | None) -> None:
        """Take in what a step has shown, and act.

        Args:
            step: its number.
            error: relative error of the tangents' predictions; None if there was nothing to predict.
            agreement: of the check; None if there was none.

        Warns:
            TangentWarning: trust is lost, and no more probes are allowed.
        """
        state = self._state
        state.steps += 1
        if error is not None and state.learned:
            keep = 1.0 - 1.0 / self.policy.average
            state.total = keep * state.total + (1.0 - keep) * min(error, WORST)
            state.weight = keep * state.weight + (1.0 - keep)
        state.learned |= error is not None
        if agreement is not None:
            state.agreement, state.fresh = agreement, True
        due = state.steps > 0 and state.steps % self.policy.average == 0
        if due or (agreement is not None and state.steps >= self.policy.average):
            self._judge(step, due)

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and the probes."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._state = _State(**state)

    def _judge(self, step: int, due: bool) -> None:
        """`due`: the error too, which a check in between does not make old enough."""
        policy, state, error = self.policy, self._state, self.error
        against = state.agreement is not None and state.agreement < policy.agreement
        stays = good = False
        if due and error is not None:
            stays = state.before is not None and error > max(self.limit, (1.0 - FALL) * state.before)
            good = error < policy.regained / policy.lost * self.limit
            state.before = error
        if stays or (against and state.fresh):
            state.lost = True
            if state.probes < self.most:
                self._take(min(2 * state.probes, self.most))
            elif not state.warned:
                state.warned = True
                warnings.warn(self._words(step), TangentWarning, stacklevel=4)  # the caller of backward
        elif good and not against:
            state.lost = state.warned = False
            if state.probes > self.fewest:
                self._take(max(state.probes // 2, self.fewest))

    def _take(self, probes: int) -> None:
        """Other probes show other errors, so the mean begins anew."""
        state = self._state
        state.probes, state.steps, state.total, state.weight, state.fresh = probes, 0, 0.0, 0.0, False

    def _words(self, step: int) -> str:
        policy, state = self.policy, self._state
        wanted = f"expected tangents to predict with a relative error of at most {self.limit:g}"
        known = "none" if self.error is None else f"{self.error:.3g}"
        found = f"found {known}, the mean over some {policy.average} steps"
        if state.agreement is not None:
            wanted += f" and the loss to change by at least {policy.agreement:g} of what their gradient says"
            found += f", and {state.agreement:.3g} of that change"
        mend = "Allow more probes (most_probes), put SecantTangent outermost, take a StudentTangent"
        if not self.learning:
            mend = "Take a tangent that learns"
        elif not self.fewest:
            mend = "Fit it to more of the box's answers, let it take more steps_per_step"
        return (
            f"Step {step}: {wanted}, {found}, with {state.probes} probes, the most allowed. Training may be "
            f"worse than none: watch a held-out loss (zo.KeepBest). {mend}, move the network less in a step; "
            "or use LossGradient with sparse coordinates."
        )
