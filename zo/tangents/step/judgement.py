"""`Judgement`: the consequences of a step for the trust in tangents, and for the dithered inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from blackbox.notices import Notice, Notices
from zo.draws import Key
from zo.tangents.evidence.along_gradient import checked
from zo.tangents.evidence.unmoved import Masked
from zo.tangents.excitation.dither import Drawn
from zo.tangents.excitation.dither_notices import across_zero
from zo.tangents.excitation.excitation import Excitation
from zo.tangents.excitation.spread import spread_around
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.record.recording import Dither
from zo.tangents.step.evaluations import Evaluation
from zo.tangents.step.gradient_settings import GradientSettings
from zo.tangents.step.outcome import StepOutcome
from zo.tangents.step.stand_ins import StandIns
from zo.tangents.trust import Check, TrustWatch, metrics


class Judgement:
    """Has gradients checked, takes in the evidence of steps, and starts remedies where trust is lost.

    Args:
        settings: the arguments of the gradient.
        stand_ins: the tangents.

    Attributes:
        watch: trust, from step to step.
        excitation: the dither of the boxes' inputs.
        check: the check of the last step.
        notices: the notices given so far.
    """

    def __init__(self, settings: GradientSettings, stand_ins: StandIns) -> None:
        self.notices = Notices()
        self.watch = TrustWatch(
            settings.limits,
            stand_ins.learn,
            [type(tangent).__name__ for tangent in settings.tangents],
            settings.steps,
            self.notices,
        )
        self.excitation = Excitation(settings.boxes, settings.limits.excite, settings.steps)
        self.check = Check()
        # of the last step: whether no gradient was added, what is to be said of that, unexplained inputs
        self.waits, self._news, self._unknowns = False, list[Notice](), list[str]()
        self._boxes, self._stand_ins = settings.boxes, stand_ins

    def dither(self, key: Key) -> Dither:
        """Return the dither of a step."""
        return self.excitation.of_step(key, self._stand_ins.excited, self._stand_ins.units)

    def excite(self, evaluation: Evaluation, gradient: StepGradient) -> StepGradient:
        """Take in the response to a step's dither, choose the next dither, and whether the gradient is used.

        The gradient is not used while the response to a first dither is not known. Then nothing is added or
        checked, and no optimiser takes a step: a zero gradient would make Adam's next steps shorter.

        Returns:
            The gradient, without the part through inputs whose response is not known, where they hold up
            nothing.
        """
        number = gradient.step.number
        self._unknowns = self._excite(gradient, evaluation.dither)
        self._news = self.excitation.look(number, self._stand_ins.excited)
        self.waits = self.excitation.waits  # the gradient is that of the models as they were
        self._news += self._look_back(gradient, evaluation.dither)
        if self.waits:
            self.watch.note_wait()
            return gradient
        return self._without_unknown(gradient)

    def _without_unknown(self, gradient: StepGradient) -> StepGradient:
        """The gradient, taken again where it has parts that turn out to be guesses, for no row."""
        again = False
        for place, excited in enumerate(self._stand_ins.excited):
            unknown = self.excitation.unknown(place)
            again |= not set(unknown) <= set(excited.unknown)
            excited.unknown = unknown
        if not again:
            return gradient
        calls = zip(gradient.at_calls, gradient.window.calls, strict=True)
        return gradient.by_others([self._stand_ins.excited[c.box].without_unknown(at) for at, c in calls])

    def along(self, evaluation: Evaluation, gradient: StepGradient) -> Check:
        """Check a gradient by queries along it, where a check is due and no outlier would decide."""
        if self.waits or evaluation.outlying is not None or not self.watch.checks(gradient.step.number):
            return Check()
        return checked(gradient, self.watch)

    def without_unmoved(self, evaluation: Evaluation, gradient: StepGradient) -> StepGradient:
        """Take the gradient again where its check has shown outputs that nothing moves, for no row.

        The check is of the gradient before, so it does not count any more. This is for dithered boxes only;
        for other boxes values show the derivative.
        """
        new: list[int] = []
        for place, numbers in evaluation.check.unmoved.items():
            excited = self._stand_ins.excited[place]
            if excited.unknown:
                continue  # the check has moved nothing through these, so it cannot tell
            if self.excitation.excites(place) and excited.saw_unmoved(numbers):
                new.append(place)
        if not new:
            return gradient
        evaluation.check = replace(evaluation.check, figures={})
        return gradient.by_others(
            [
                Masked(at, outputs=self._stand_ins.excited[call.box].unmoved or ()) if call.box in new else at
                for at, call in zip(gradient.at_calls, gradient.window.calls, strict=True)
            ]
        )

    def share(self, evaluation: Evaluation) -> float | None:
        """The factor of a step's gradient, after its check; None where it is not used."""
        return None if self.waits else self.watch.share(evaluation.check)

    def saw(self, evaluation: Evaluation, gradient: StepGradient, lost: int) -> None:
        """Take in a step, and act: give its notices, and start remedies where trust is lost.

        Args:
            evaluation: the evaluation of the step, with the check.
            gradient: the gradient, before it is shortened.
            lost: the number of failed rows of all steps so far.

        Warns:
            TangentWarning, ZeroGradientWarning, LostRowsWarning: see `StepOutcome.say` and `TrustWatch.saw`.
        """
        self.check, number = evaluation.check, gradient.step.number
        if number == 0:
            self.watch.note_way_beside(gradient.back.beside)
        if evaluation.refused:
            self.notices.say(self.excitation.refused(number, evaluation.refused))
        self.notices.say(across_zero(number, self._boxes, evaluation.recorded, evaluation.survived))
        self.notices.say(*self._news)
        news = bool(self.excitation) and not evaluation.dither  # what nobody knew of, from now on
        outcome = StepOutcome(evaluation, gradient, self._unknowns, news)
        outcome.say(self.notices, self.watch, self._stand_ins.tangents, lost)
        excite = partial(self.excitation.judge_again, spread_around(gradient))
        self.watch.saw(number, self._stand_ins.error, outcome.check, self._stand_ins.improve, excite)

    def metrics(self) -> dict[str, float | None]:
        """Return the figures of the last check, trust, and the dither."""
        return {
            **metrics(self.check),
            "tangent_distrusted": self.watch.lost,
            "tangent_excitation": self.excitation.response,
            "tangent_excitation_known": self.excitation.out_of_loss,
            "tangent_waits": float(self.waits) if self.excitation or self.waits else None,
        }

    def dithers(self) -> tuple[dict[str, Tensor], ...]:
        """Return the standard deviation of the next dither for each box, by the name of the input."""
        return tuple(
            {box.inputs[which].name: size for which, size in self.excitation.sizes(place).items()}
            for place, box in enumerate(self._boxes)
        )

    def state_dict(self) -> dict[str, Any]:
        """Trust and excitation, and what the last step has shown."""
        return {
            "trust": self.watch.state_dict(),
            "excitation": self.excitation.state_dict(),
            "shown": {"figures": dict(self.check.figures), "waits": self.waits},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.watch.load_state_dict(state["trust"])
        self.excitation.load_state_dict(state["excitation"])
        shown = state["shown"]
        self.check, self.waits = Check(shown["figures"]), shown["waits"]

    def _look_back(self, gradient: StepGradient, dither: Dither) -> list[Notice]:
        """Find what programs keep, by the dithers of a step."""
        if not isinstance(dither, Drawn):
            return []
        window = gradient.window
        notices = self._stand_ins.look_back(
            window.calls, gradient.pairs, dither.predicted, window.survived, gradient.step.number
        )
        for place in notices:
            self.excitation.begin_again(place, self._stand_ins.memory[place])
        return list(notices.values())

    def _excite(self, gradient: StepGradient, dither: Dither) -> list[str]:
        """Choose the next dither; inputs that values do not show and that have none, in words."""
        if not self.watch.terms.learns:
            return []
        window, back = gradient.window, gradient.back
        spread = spread_around(gradient)
        unknowns = self.excitation.saw(
            window.calls, gradient.pairs, dither, back.reached, window.survived, spread
        )
        for place, tangent in enumerate(self._stand_ins.excited):
            if not self.excitation.excites(place):
                tangent.forget()
        return unknowns
