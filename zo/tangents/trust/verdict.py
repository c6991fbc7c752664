"""`decide`: the verdict on a step's evidence, without words, actions or memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zo.tangents.trust.evidence import Check, Evidence, FailedRows, SixteenBits, is_flat, is_uneven
from zo.tangents.trust.figures import Fault, fault_of_error, faults_of
from zo.tangents.trust.trust_terms import State, TrustTerms

WORST = 10.0  # errors above count as this: one step in which nothing is known is not all that counts
FALL = 0.1  # an error that falls by less between two verdicts falls no more
RARELY = 10  # times as many steps between checks of a box that is constant in pieces; decision 43


@dataclass(frozen=True)
class TrustVerdict:
    """The verdict on a step.

    Attributes:
        state: the trust after it.
        faults: the limits that are broken, where they cost trust and a remedy is due.
    """

    state: State
    faults: tuple[Fault, ...] = ()


def is_checked(terms: TrustTerms, state: State, step: int) -> bool:
    """Say whether a step, from 0, is checked; checks are ten times rarer where they show nothing.

    That is where the box is constant in pieces, or the network computes in 16 bits.
    """
    every = terms.limits.check_every
    if every is None or ((state.flat or state.narrow) and (step + 1) % (RARELY * every)):
        return False
    early = 1 if state.passed else terms.limits.early
    return (terms.learns and step < state.waited + early) or terms.limits.checks(step)


def share_of(terms: TrustTerms, state: State, check: Check) -> float:
    """The factor of a step's gradient, after a check.

    1 where the check finds no fault. Else the agreement, between -1 and 1: that makes the step's gradient the
    projection of the true gradient on it, so that it never leads uphill. It is never made longer.
    """
    agreement = check.figures.get("agreement")
    if agreement is None or not (terms.learns and faults_of(terms, state, check)):
        return 1.0
    return min(max(agreement, -1.0), 1.0)


def decide(terms: TrustTerms, state: State, evidence: Evidence) -> TrustVerdict:
    """Return the trust in tangents after a step.

    Args:
        terms: the fixed terms of trust.
        state: the trust before the step.
        evidence: the evidence of the step.
    """
    state, check = _seen(terms, state, evidence), evidence.check
    average = terms.limits.thresholds.average
    due = state.steps > 0 and state.steps % average == 0
    if due or (check.shows and state.steps - state.waited >= average):  # at first little is known
        return _judged(terms, state, due)
    return TrustVerdict(state)


def _seen(terms: TrustTerms, state: State, evidence: Evidence) -> State:
    """The state with what a step has shown, before anything follows from it."""
    check, error = evidence.check, evidence.error
    balance = check.figures.get("balance")
    state = replace(
        state,
        flat=state.flat if check.flat is None else is_flat(check.flat),
        narrow=state.narrow or isinstance(check.reason, SixteenBits),
        cut=state.cut or check.cut is not None,
        whole=state.whole or (balance is not None and not is_uneven(balance)),
        steps=state.steps + 1,
        noise=state.noise if check.noise is None else check.noise,
    )
    if check.short is not None and state.short is not None:
        state = replace(state, short=state.short + 1 if check.short else None)
    if error is not None and state.learned:
        keep = 1.0 - 1.0 / terms.limits.thresholds.average
        part = error if error < WORST else WORST  # or NaN
        state = replace(
            state,
            total=keep * state.total + (1.0 - keep) * part,
            weight=keep * state.weight + (1.0 - keep),
        )
    state = replace(state, learned=state.learned or error is not None)
    if check.shows:
        good = state.passed or not faults_of(terms, state, check)
        return replace(state, check=check, checked=evidence.step, fresh=True, failed=0, passed=good)
    return replace(state, failed=state.failed + isinstance(check.reason, FailedRows))


def _judged(terms: TrustTerms, state: State, due: bool) -> TrustVerdict:
    """The verdict by the faults of the last check, and by the error of predictions where that is due.

    Args:
        terms: the fixed terms of trust.
        state: the trust, with the evidence of the step.
        due: whether `average` steps have passed since the error was last judged. A check may come in between,
            when the error has not had the time to fall.
    """
    error, limit = state.error, terms.limits.thresholds.lost
    faults = faults_of(terms, state, state.check)
    stays = good = False
    if due and error is not None:
        stays = state.before is not None and error > max(limit, (1.0 - FALL) * state.before)
        good = error < terms.limits.thresholds.regained
        state = replace(state, before=error)
    if stays or (faults and state.fresh):
        of_error = (fault_of_error(error, limit),) if error is not None and error > limit else ()
        return TrustVerdict(replace(state, lost=True), of_error + faults)
    if good and not faults:
        return TrustVerdict(replace(state, lost=False, returned=state.returned + state.lost))
    return TrustVerdict(state)
