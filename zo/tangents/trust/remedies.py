"""What is done where trust is lost: `REMEDIES` in the order in which they are tried, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zo.tangents.trust.state import State, TrustTerms
from zo.tangents.trust.verdict import TrustVerdict

Improve = Callable[[], Sequence[str]]  # has something done, and says what, in words; empty for nothing


@dataclass(frozen=True)
class Means:
    """What can be done for no more rows.

    Attributes:
        excite: dithers inputs that were not, as values do not show the derivative by them.
        improve: has the tangents do more.
        felt: what a probe changes the mean loss by, as `State.noise` says what it changes by alone; None
            where that is not known.
    """

    excite: Improve = tuple
    improve: Improve = tuple
    felt: float | None = None


@dataclass(frozen=True)
class Begun:
    """A remedy that has begun.

    Attributes:
        remedy: its name.
        state: the trust with it.
        done: what is done from now on, in words; empty where the name says it.
    """

    remedy: str
    state: State
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remedy:
    """Something to be done where trust is lost.

    Attributes:
        name: what it is.
        begin: begins it; None where it does not apply, or has nothing left to do.
        cost: what it takes.
        taken_back: what must be shown for it to end; `verdict` decides that.
    """

    name: str
    begin: Callable[[TrustTerms, int, TrustVerdict, Means], Begun | None]
    cost: str
    taken_back: str


def _excited(terms: TrustTerms, step: int, verdict: TrustVerdict, means: Means) -> Begun | None:
    words, state = tuple(means.excite()), verdict.state
    return Begun("excitation", state.with_probes(state.probes), words) if words else None


def _improved(terms: TrustTerms, step: int, verdict: TrustVerdict, means: Means) -> Begun | None:
    words, state = tuple(means.improve()), verdict.state
    return Begun("tangents", state.with_probes(state.probes), words) if words else None


def _bought(terms: TrustTerms, step: int, verdict: TrustVerdict, means: Means) -> Begun | None:
    state = verdict.state
    nothing = state.flat or drowned(state, means.felt)
    more = state.probes if nothing else min(max(2 * state.probes, 1), terms.most)
    unseen = any(fault.name != "error" for fault in verdict.faults)
    return Begun("probes", state.bought(terms, step, more, unseen)) if more > state.probes else None


REMEDIES = (
    Remedy(
        "excitation",
        _excited,
        "a small dither, and no rows",
        "values that identify the input by themselves, as far as `identified` can tell",
    ),
    Remedy("tangents", _improved, "time, and no rows", "nothing: what has been learned stays"),
    Remedy(
        "probes",
        _bought,
        "the rows of a base for each, within max_rows",
        "predictions that are good, and no fault in the last check; where a check without probes had found "
        "fault, or trust is lost again, no fault in a check of a step without them",
    ),
)


def drowned(state: State, felt: float | None) -> bool:
    """Whether a box's noise is more than what a probe changes: of responses it would show nothing."""
    return state.noise is not None and felt is not None and state.noise > felt


def begin(terms: TrustTerms, step: int, verdict: TrustVerdict, means: Means) -> Begun | None:
    """Begin the first remedy that applies; None where none is left."""
    return next(filter(None, (remedy.begin(terms, step, verdict, means) for remedy in REMEDIES)), None)
