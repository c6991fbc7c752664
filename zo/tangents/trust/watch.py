"""`TrustWatch`: takes trust from step to step, starts remedies, and issues the notices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from blackbox.notices import Notices
from zo.tangents.trust import trust_notices
from zo.tangents.trust.evidence import TOO_SHORT, UNCHECKED, Check, Evidence, is_uneven
from zo.tangents.trust.figures import faults_of
from zo.tangents.trust.limits import Limits
from zo.tangents.trust.trust_terms import State, TrustTerms
from zo.tangents.trust.verdict import TrustVerdict, decide, is_checked, share_of

Remedy = Callable[[], Sequence[str]]  # begins something that takes no row, and says what; empty for nothing


class TrustWatch:
    """Keeps a gradient's trust from step to step, and says which steps are checked.

    Args:
        limits: when checks come; its thresholds say when trust is lost.
        learns: whether a tangent learns: then early steps are checked, and where a check finds fault its
            step takes a share of the gradient.
        kinds: names of the tangents' classes, which are not advised.
        last: how many steps there will be; None where that is not known.
        notices: the notices given so far.

    Attributes:
        terms: the fixed terms of trust.
        state: the trust so far.
    """

    def __init__(
        self,
        limits: Limits,
        learns: bool = True,
        kinds: Sequence[str] = (),
        last: int | None = None,
        notices: Notices | None = None,
    ) -> None:
        self.terms = TrustTerms(limits, learns, tuple(kinds), last)
        self.state = State()
        self._notices = Notices() if notices is None else notices

    @property
    def error(self) -> float | None:
        """The running mean of the relative error; None before there is one."""
        return self.state.error

    @property
    def lost(self) -> bool:
        """True if trust is lost."""
        return self.state.lost

    def checks(self, step: int) -> bool:
        """Say whether a step, from 0, is checked."""
        return is_checked(self.terms, self.state, step)

    def share(self, check: Check) -> float:
        """The factor of a step's gradient, after a check."""
        return share_of(self.terms, self.state, check)

    def doubts(self, check: Check) -> bool:
        """Say whether a check finds fault."""
        return bool(faults_of(self.terms, self.state, check))

    def may_be_cut(self, check: Check) -> bool:
        """Say whether part of the gradient may be missing: asked until a check has shown it whole or cut."""
        return not (self.state.whole or self.state.cut) and is_uneven(check.figures.get("balance"))

    def may_be_short(self, check: Check) -> bool:
        """Say whether a check that finds no fault shows a far too short gradient, until that is told.

        It says so only after an earlier check without fault: at first little is known.
        """
        agreement, times = check.figures.get("agreement", 1.0), self.state.short
        open_question = self.state.passed and not self.state.cut and times is not None and times < TOO_SHORT
        return open_question and agreement > 1.0 and is_uneven(agreement)

    def saw(
        self,
        step: int,
        error: float | None,
        check: Check = UNCHECKED,
        improve: Remedy = tuple,
        excite: Remedy = tuple,
    ) -> None:
        """Take in the evidence of a step, and act.

        Args:
            step: the number of the step.
            error: relative error of the tangents' predictions; None if there was nothing to predict.
            check: the check of the step.
            improve: improves the tangents without further rows where trust is lost, and says how, in words.
            excite: called before that; dithers further inputs, and names them, in words.

        Warns:
            TangentWarning: trust is lost. The message names the limit and the remedy: inputs are dithered,
                tangents learn longer, another kind is tried, or nothing is left. Or three checks in a row
                showed nothing. Or the box is constant in pieces, or its answers have too few digits for a
                check, or differ when it is asked the same again. Each warning is given once.
        """
        evidence = Evidence(step, error, check)
        verdict = decide(self.terms, self.state, evidence)
        self.state = verdict.state
        if not self.state.failed:
            self._notices.renew("failed checks")
        self._notices.say(*trust_notices.of_evidence(self.terms, self.state, evidence))
        if verdict.faults:
            self._mend(step, verdict, excite, improve)

    def knows_nothing_of(self, step: int, inputs: Sequence[str]) -> None:
        """Take in inputs whose derivative values do not show and that are not dithered.

        Args:
            step: the number of the step.
            inputs: which, in words.

        Warns:
            TangentWarning: says so, once.
        """
        self._notices.say(trust_notices.unidentified(step, inputs))

    def note_way_beside(self, there_is: bool) -> None:
        """Take in whether some way from the weights to the loss passes no box."""
        self.state = replace(self.state, beside=there_is)

    def note_wait(self) -> None:
        """Take in that the gradient of a step is not used."""
        self.state = replace(self.state, waited=self.state.waited + 1)

    def state_dict(self) -> dict[str, Any]:
        """Save the trust and the names of the notices given."""
        return {**self.state.plain(), "said": sorted(self._notices.said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.state = State.of({name: value for name, value in state.items() if name != "said"})
        self._notices.said = set(state["said"])

    def _mend(self, step: int, verdict: TrustVerdict, *remedies: Remedy) -> None:
        """Begin the first remedy that has something left to do, and say so."""
        if self.terms.last is not None and step + 1 >= self.terms.last:
            if trust_notices.stuck_name(verdict.state) not in self._notices.said:
                self._notices.say(trust_notices.lost_at_the_end(step, verdict, self._control()))
            return
        actions = next(filter(None, (tuple(remedy()) for remedy in remedies)), ())
        if not actions:
            self._notices.say(trust_notices.stuck(self.terms, step, verdict))
            return
        self._notices.say(trust_notices.begun(self.terms, step, verdict, actions, self._control()))
        self.state = verdict.state.mended()

    def _control(self) -> str:
        """Advise a method that takes no more rows and may train better; say nothing where that was done."""
        new = "control" not in self._notices.said
        self._notices.settle("control")
        return trust_notices.CONTROL if new and self.state.beside else ""
