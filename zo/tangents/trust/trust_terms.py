"""`TrustTerms`, the fixed terms of a gradient's trust, and `State`, its trust so far: both frozen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from zo.tangents.trust.evidence import Check
from zo.tangents.trust.limits import Limits


@dataclass(frozen=True)
class TrustTerms:
    """The terms of trust that do not change from step to step.

    Attributes:
        limits: when checks come; its thresholds say when trust is lost.
        learns: whether a tangent learns.
        kinds: names of the tangents' classes, which are not advised.
        last: how many steps there will be; None where that is not known.
    """

    limits: Limits
    learns: bool = False
    kinds: tuple[str, ...] = ()
    last: int | None = None


@dataclass(frozen=True)
class State:
    """The trust of a gradient, as a resumed run must know it; each step replaces it by a new one.

    Attributes:
        total: the sum of errors, each weighted by its age.
        weight: the sum of these weights.
        steps: the number of steps since the last remedy began, without the first of all.
        learned: whether the first step is over.
        check: the last check that showed something.
        checked: the step of that check.
        fresh: whether that check was made since the last remedy began.
        before: the mean error when it was last judged.
        passed: whether a check has found no fault.
        lost: whether trust is lost.
        noise: see `Check.noise`.
        failed: the number of checks in a row that showed nothing, since rows failed.
        flat: whether the box was constant in pieces when it was last asked.
        narrow: whether a check showed nothing, since the network computes in 16 bits.
        whole: whether a check has found nothing missing from the gradient; that depends on the objective
            alone.
        cut: whether a check has found a part missing.
        beside: whether a way from the weights to the loss passes no box.
        returned: how often trust has returned.
        short: the number of checks that found the gradient too short; None once that was curvature.
        waited: the number of steps at the beginning whose gradient was not used.
    """

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
    short: int | None = 0
    waited: int = 0

    @property
    def error(self) -> float | None:
        """The running mean of the relative error; None before there is one."""
        return self.total / self.weight if self.weight else None

    def mended(self) -> State:
        """The same where a remedy begins: errors from here on are of other tangents, so a new mean begins."""
        return replace(self, fresh=False, steps=0, total=0.0, weight=0.0)

    def plain(self) -> dict[str, Any]:
        """The state in plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> State:
        """Rebuild the state from the output of `plain`."""
        check = plain["check"]
        return cls(**{**plain, "check": None if check is None else Check(**check)})
