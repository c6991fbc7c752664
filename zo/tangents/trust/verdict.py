"""`decide`: what follows from what a step has shown; no words, nothing done, nothing remembered."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zo.tangents.trust.evidence import Check, Evidence, FailedRows, SixteenBits, is_flat, is_uneven
from zo.tangents.trust.figures import Fault, fault_of_error, faults_of
from zo.tangents.trust.state import State, TrustTerms

WORST = 10.0  # errors above count as this: one step in which nothing is known is not all that counts
# steps, behind those that wait, that are each checked until a check finds no fault; decision 65
EARLY = 5
FALL = 0.1  # an error that falls by less between two verdicts falls no more
RARELY = 10  # times as many steps between checks of a box that is constant in pieces; decision 43


@dataclass(frozen=True)
class TrustVerdict:
    """What follows from a step.

    Attributes:
        state: the trust after it.
        faults: the limits that are broken, where they cost trust.
        lost: whether a remedy is due.
        regained: whether trust has returned.
        missing: whether the probes stay, since the check of a step without them finds fault.
    """

    state: State
    faults: tuple[Fault, ...] = ()
    lost: bool = False
    regained: bool = False
    missing: bool = False


def limit_of(terms: TrustTerms, state: State) -> float:
    """The error above which trust is lost: of responses, or without probes of values."""
    return terms.policy.lost if state.asked else terms.policy.lost_values


def is_checked(terms: TrustTerms, state: State, step: int) -> bool:
    """Whether a step, from 0, is checked; ten times more rarely where checks show nothing.

    That is where the box is constant in pieces, or the network computes in 16 bits.
    """
    every = terms.policy.check_every
    if every is None or ((state.flat or state.narrow) and (step + 1) % (RARELY * every)):
        return False
    early = terms.guesses and not state.asked
    again = early and step < EARLY + state.waited and not state.passed and terms.max_rows >= 2
    return again or (early and step == state.waited) or terms.policy.checks(step)


def share_of(terms: TrustTerms, state: State, check: Check) -> float:
    """The factor of a step's gradient, after a check.

    1 where the check finds no fault. Else the agreement, between -1 and 1: that makes the step's gradient the
    projection of the true gradient on it, so that it never leads uphill. It is never made longer.
    """
    agreement = check.figures.get("agreement")
    if agreement is None or not (terms.guesses and faults_of(terms, state, check)):
        return 1.0
    return min(max(agreement, -1.0), 1.0)


def decide(terms: TrustTerms, state: State, evidence: Evidence) -> TrustVerdict:
    """What follows from a step for the trust in tangents.

    Args:
        terms: what the gradient was made with.
        state: the trust before the step.
        evidence: what the step has shown.
    """
    verdict = _usual(terms, state, evidence) if state.trial is None else _tried(terms, state, evidence)
    after, number = verdict.state, evidence.step + 1
    if after.due and number >= after.not_before and is_checked(terms, after, number):
        return replace(verdict, state=replace(after, trial=terms.fewest))
    return verdict


def _usual(terms: TrustTerms, state: State, evidence: Evidence) -> TrustVerdict:
    """The verdict on a step that has the probes that trust asks for."""
    state, check = _seen(terms, state, evidence), evidence.check
    if state.flat and state.probes:
        return TrustVerdict(state)  # what they show of such a box is no error of the tangents
    average = terms.policy.average
    due = state.steps > 0 and state.steps % average == 0
    if due or (check.shows and state.steps - state.waited >= average):  # at first little is known
        return _judged(terms, state, due)
    return TrustVerdict(state)


def _tried(terms: TrustTerms, state: State, evidence: Evidence) -> TrustVerdict:
    """The verdict on a step that went without the probes that were bought: its check decides."""
    after = _seen(terms, state, replace(evidence, error=None))  # an error of values, and not of responses
    if after.trial is None:
        return TrustVerdict(after)  # the box is constant in pieces
    faults = faults_of(terms, after, evidence.check)
    if evidence.check.shows and not faults:
        back = replace(after.with_probes(terms.fewest), lost=False, returned=after.returned + 1)
        return TrustVerdict(back, regained=True)
    stays = replace(after, trial=None, check=state.check, checked=state.checked, fresh=state.fresh)
    return TrustVerdict(stays.delayed(evidence.step, terms.policy.check_every), faults, missing=bool(faults))


def _seen(terms: TrustTerms, state: State, evidence: Evidence) -> State:
    """The state with what a step has shown, before anything follows from it."""
    check, error = evidence.check, evidence.error
    if check.flat is not None:
        flat = is_flat(check.flat)
        less = flat and state.probes > terms.fewest
        state = replace(state.with_probes(terms.fewest) if less else state, flat=flat)
    balance = check.figures.get("balance")
    state = replace(
        state,
        narrow=state.narrow or isinstance(check.reason, SixteenBits),
        cut=state.cut or check.cut is not None,
        whole=state.whole or (balance is not None and not is_uneven(balance)),
        steps=state.steps + 1,
        noise=state.noise if check.noise is None else check.noise,
    )
    if check.short is not None and state.short is not None:
        state = replace(state, short=state.short + 1 if check.short else None)
    if error is not None and state.learned:
        keep = 1.0 - 1.0 / terms.policy.average
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
        terms: what the gradient was made with.
        state: the trust, with what the step has shown.
        due: whether `average` steps have passed since the error was last judged. A check may come in between,
            when the error has not had the time to fall.
    """
    policy, error, limit = terms.policy, state.error, limit_of(terms, state)
    faults = faults_of(terms, state, state.check)
    stays = good = False
    if due and error is not None:
        stays = state.before is not None and error > max(limit, (1.0 - FALL) * state.before)
        good = error < policy.regained / policy.lost * limit
        state = replace(state, before=error, due=False)
    if stays or (faults and state.fresh):
        of_error = (fault_of_error(state, error, limit),) if error is not None and error > limit else ()
        return TrustVerdict(replace(state, lost=True), of_error + faults, lost=True)
    if good and not faults:
        if state.held:
            return TrustVerdict(replace(state, due=True))
        state = replace(state, lost=False, returned=state.returned + state.lost)
        if state.probes > terms.fewest:
            state = state.with_probes(max(state.probes // 2, terms.fewest))
        return TrustVerdict(state, regained=True)
    return TrustVerdict(state)
