"""`TrustTerms`, what a gradient was made with, and `State`, what its trust has come to: both frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from zo.tangents.trust.evidence import Check
from zo.tangents.trust.policy import TrustPolicy


@dataclass(frozen=True)
class TrustTerms:
    """What does not change from step to step.

    Attributes:
        policy: the limits of trust, and when they are looked at.
        fewest: probes to begin with.
        most: probes that `max_rows` allows where more can help.
        max_rows: what a step may cost on average, in multiples of the base's rows.
        asked: `max_rows` as the user gave it, for messages.
        learning: whether more probes can help any tangent.
        guesses: whether a tangent learns from values.
        kinds: names of the tangents' classes, which are not advised.
        last: how many steps there will be; None where that is not known.
    """

    policy: TrustPolicy
    fewest: int
    most: int
    max_rows: float
    asked: float
    learning: bool = True
    guesses: bool = False
    kinds: tuple[str, ...] = ()
    last: int | None = None


@dataclass(frozen=True)
class State:
    """What a resumed run must know; each step puts another in its place.

    Attributes:
        probes: of a step.
        total: the sum of errors, each weighted by its age.
        weight: the sum of those weights.
        steps: with this many probes, the first of all apart.
        learned: the first step is over.
        check: the last one that showed something.
        checked: the step of that check.
        fresh: it was made with this many probes.
        before: the mean error when it was last judged.
        passed: a check has found no fault.
        lost: whether trust is lost.
        noise: see `Check.noise`.
        failed: checks in a row that showed nothing, since rows failed.
        flat: the box was constant in pieces when it was last asked.
        narrow: a check showed nothing, since the network computes in 16 bits.
        whole: a check has found nothing missing from the gradient, which is as the objective is.
        cut: or something.
        beside: a way from the weights to the loss passes no box.
        returned: how often trust has returned.
        held: the probes that were bought stay until a check without them finds no fault.
        due: such probes are to be taken back, as far as predictions show.
        trial: the probes of the next step, where these are fewer, to see what its check finds.
        wait: checks until the next trial, once one has failed.
        not_before: the first step that may be a trial.
        short: checks that found the gradient too short; None once one has found that to be curvature.
        waited: steps at the beginning whose gradient was not used.
    """

    probes: int
    total: float = 0.0
    weight: float = 0.0
    steps: int = -1
    learned: bool = False
    check: Check | None = None
    checked: int | None = None
    fresh: bool = False
    before: float | None = None
    passed: bool = False
    lost: bool = False
    noise: float | None = None
    failed: int = 0
    flat: bool = False
    narrow: bool = False
    whole: bool = False
    cut: bool = False
    beside: bool = True
    returned: int = 0
    held: bool = False
    due: bool = False
    trial: int | None = None
    wait: int = 1
    not_before: int = 0
    short: int | None = 0
    waited: int = 0

    @property
    def asked(self) -> int:
        """The probes of the next step."""
        return self.probes if self.trial is None else self.trial

    @property
    def error(self) -> float | None:
        """The running mean of the relative error; None before there is one."""
        return self.total / self.weight if self.weight else None

    def with_probes(self, probes: int) -> State:
        """Other probes show other errors, so a new mean begins; with none they are of something else."""
        state = self
        if bool(probes) != bool(self.probes):
            state = replace(state, before=None, check=None)
        stays = self.held and probes >= self.probes
        state = replace(state, held=stays, due=False, trial=None, fresh=False)
        return replace(state, probes=probes, steps=0, total=0.0, weight=0.0)

    def delayed(self, step: int, every: int | None) -> State:
        """The next trial comes after twice as many checks as the one before."""
        wait = 2 * self.wait
        return replace(self, wait=wait, not_before=step + wait * (every or 0))

    def bought(self, terms: TrustTerms, step: int, probes: int, unseen: bool) -> State:
        """More probes, from this step on.

        Args:
            terms: what the gradient was made with.
            step: the number of the step.
            probes: how many from now on.
            unseen: whether what is wrong does not show in predictions: then good ones do not show that it is
                gone. They do not either where trust that had returned by them is lost again.
        """
        again = self.probes == terms.fewest and self.returned > 0
        first = not self.probes and unseen
        stays = self.held or (terms.policy.check_every is not None and (first or again))
        state = self.delayed(step, terms.policy.check_every) if stays and again else self
        return replace(state.with_probes(probes), held=stays)


def saved(state: State, said: Iterable[str]) -> dict[str, Any]:
    """A state, and the names of the notices that were given, in plain values."""
    return {**asdict(state), "said": sorted(said)}


def restored(kept: dict[str, Any]) -> tuple[State, set[str]]:
    """The state and the names that `saved` kept."""
    state = {name: value for name, value in kept.items() if name not in ("said", "check")}
    check = kept["check"]
    return State(**state, check=None if check is None else Check(**check)), set(kept["said"])
