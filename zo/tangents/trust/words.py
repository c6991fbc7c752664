"""All sentences about trust in tangents, as notices with a name each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blackbox.notices import Notice
from blackbox.words import counted
from zo.errors import TangentWarning
from zo.tangents.trust.evidence import TOO_SHORT, Evidence, FailedRows, FewDigits, SixteenBits
from zo.tangents.trust.remedies import Begun
from zo.tangents.trust.state import State, TrustTerms
from zo.tangents.trust.verdict import RARELY, TrustVerdict

UNLIKE = 1e-5  # of the loss: what the same rows may differ by when they are asked again, as sums are rounded
HELD_OUT = "zo.KeepBest, or a run's validation"
SEVERAL = 25  # steps that the remedies of tangents take
UNSHOWN = 3  # checks in a row that showed nothing, since rows failed: after these it is said; decision 34
CONTROL = (
    " Where tangents are in doubt, the gradient that is cut at the boxes (no-gradient) may train better and "
    "takes no more rows: compare, see docs/howto/trust.md."
)
ADVICE = {  # where probes do not help, and the classes of tangents that have it already
    "put SecantTangent outermost (secant), ": ("SecantTangent", "AutoTangent"),
    "take a StudentTangent (student), ": ("StudentTangent",),
}


def of_evidence(terms: TrustTerms, state: State, evidence: Evidence) -> Iterator[Notice]:
    """What a step's evidence shows by itself, whatever follows from it.

    Args:
        terms: what the gradient was made with.
        state: the trust after the step.
        evidence: what the step has shown.
    """
    check, at = evidence.check, f"Step {evidence.step + 1}: "
    reason = check.reason
    if check.flat is not None and state.flat:
        every = terms.policy.check_every
        rest = f", and there is a check in every {RARELY * every} steps alone" if every else ""
        student = "" if "StudentTangent" in terms.kinds else " Take a StudentTangent, for its values."
        yield _notice(
            "flat",
            f"{at}expected a box that answers a little otherwise where its input is moved a little, got the "
            f"very same answers in {check.flat:.0%} of the rows: it is constant in pieces, as trees, tables, "
            "labels and rounded outputs are. What is asked beside training's own rows shows nothing of it, "
            f"so no probes are added{rest}.{student} Whether the tangent's slopes are of use only a held-out "
            f"loss says ({HELD_OUT}).",
        )
    if isinstance(reason, FewDigits):
        yield _notice(
            "digits",
            f"{at}expected answers that show a change of the loss by a hundredth, the box's answers have "
            f"{counted(reason.digits, 'digit')}: print more (%.17g prints all). Checks that cannot "
            "distinguish the gradient's effect from the last digit say nothing of the tangents: watch a "
            f"held-out loss ({HELD_OUT}).",
        )
    if isinstance(reason, SixteenBits):
        yield _notice(
            "narrow",
            f"{at}expected float32 or float64 between the weights and the loss, got {reason.dtype}, which "
            "rounds away what a check along the gradient changes. Checks show nothing of the tangents then, "
            f"and come ten times more rarely: watch a held-out loss ({HELD_OUT}), or leave out autocast.",
        )
    if check.unlike is not None and check.unlike > UNLIKE:
        yield _notice(
            "noise",
            f"{at}expected the same answers where the boxes are asked the same rows again, got a mean loss "
            f"that differs by {check.unlike:.1e} of it. A box is noisy, or has a state that goes on from "
            "call to call, such as a warm start, a counter or a buffer: `blackbox check` tells which. Noise "
            "is averaged over rows and steps; a state is not, and its part of the gradient is wrong: reset "
            "it in each call, or make it an input and an output. Checks along the gradient show nothing "
            f"that is smaller: watch a held-out loss ({HELD_OUT}).",
        )
    if check.cut is not None:
        yield _notice(
            "cut",
            f"{at}expected the loss along the gradient to change by what autograd says for the boxes' own "
            f"answers, got {1 + check.cut:.3g} times that: part of the gradient is cut off between the "
            "weights and the loss, as by a .detach(), an .item(), NumPy, a torch.no_grad() or an output of "
            "whole numbers. No tangent mends that. Where you cut it on purpose, as at a fixed target, leave "
            "it; otherwise take the cut out, or take zo.LossGradient, which goes by the loss itself.",
        )
    if check.short and state.short == TOO_SHORT:
        yield _notice(
            "short",
            f"{at}expected the loss along the gradient to change by about what the gradient says, got "
            f"{1 + check.short:.3g} times that, over a tenth of the way too, in {TOO_SHORT} checks: the "
            "gradient is too short, and what tangents leave out of it may point elsewhere. So it is where a "
            "box keeps something between calls that it is not given, as a lag, a filter or a delay: make "
            "that an input and an output, or show a hosted program's earlier calls (memory=). Else watch a "
            f"held-out loss ({HELD_OUT}).",
        )
    if isinstance(reason, FailedRows) and state.failed == UNSHOWN:
        yield _notice(
            "failed checks",
            f"{at}expected at most a tenth of a check's rows to fail, and none with most of the gradient, "
            f"{reason.share:.0%} did, and the last {UNSHOWN} checks showed nothing. Until one does, trust "
            f"rests on predictions alone: watch a held-out loss ({HELD_OUT}), and see the black box's "
            "ledger.",
        )


def lost_at_the_end(step: int, verdict: TrustVerdict, control: str) -> Notice:
    """Trust is lost in the last step, in which no remedy would do anything."""
    rest = "This is the last step, so nothing is done about it: judge the weights by held-out data."
    return _notice("last step", f"{_broken(step, verdict)}. {rest}{control}")


def begun(terms: TrustTerms, step: int, verdict: TrustVerdict, remedy: Begun, control: str) -> Notice:
    """A remedy has begun: why, what it is, and what it costs."""
    if remedy.done:
        what = f"From now on {' and '.join(remedy.done)}, for no more rows."
    else:
        what = _cost(terms, verdict.state, remedy.state.probes)
        if remedy.state.held and not verdict.state.held:
            what += " Trust returns where a check in a step without them finds no fault."
            what += _last(terms) if verdict.state.returned else ""
    name = f"{', '.join(remedy.done)}, step {step}" if remedy.done else _purchase(verdict.state, remedy.state)
    return _notice(name, f"{_broken(step, verdict)}. {what}{_left(terms, step)}{control}")


def missing(terms: TrustTerms, step: int, verdict: TrustVerdict) -> Notice:
    """Probes stay, since the check of a step without them finds fault."""
    state = verdict.state
    stays = "it stays" if state.probes == 1 else "they stay"
    them, were = ("it", "was") if state.probes == 1 else ("them", "were")
    return _notice(
        "missing",
        f"{_broken(step, verdict, tried=True)}, in a step without the {_probes(state.probes)} that {were} "
        f"added when trust was lost. So {stays}: a step asks the boxes for {1 + state.probes} times the "
        f"rows of a first-order step. The next step without {them} comes after step {state.not_before}, and "
        f"further ones ever more rarely.{_last(terms)}",
    )


def of_probes(terms: TrustTerms) -> list[str]:
    """The names of all notices that say that probes are added or stay."""
    purchases = (f"probes: {number}, time {time}" for number in range(1, terms.most + 1) for time in (1, 2))
    return ["missing", *purchases]


def stuck(terms: TrustTerms, step: int, verdict: TrustVerdict, noisy: bool = False) -> Notice:
    """No remedy is left; `noisy`: probes, which would show noise alone, are none."""
    advice = _advice(terms, verdict, noisy)
    return _notice(stuck_name(verdict.state), f"{_broken(step, verdict)}. {advice}")


def stuck_name(state: State) -> str:
    """The name of `stuck`, which is said again where trust had returned, once."""
    return f"stuck, time {_time(state)}"


def unidentified(terms: TrustTerms, step: int, before: State, after: State, inputs: Sequence[str]) -> Notice:
    """Inputs whose derivative values do not show and that are not dithered, and what is done about it."""
    finding = (
        f"Step {step + 1}: expected inputs that weights move to differ between rows by more than the other "
        f"inputs determine, got {'; and '.join(inputs[:3])}{' and others' if inputs[3:] else ''}: the same "
        "in all rows, or a function of the others, and without dither (excite=0). Values show nothing of "
        "that derivative: what a tangent says of it is chance."
    )
    if after.probes > before.probes:
        return _notice("unidentified", f"{finding} {_cost(terms, before, after.probes)}")
    return _notice(
        "unidentified",
        f"{finding} Leave excite out, add a little noise in each row, or allow probes: "
        f"max_rows={terms.max_rows:g} allows none.",
    )


def unmoved(step: int, zero: bool) -> Notice:
    """No probe of a step changed an input of a box."""
    gradient = (
        "is exactly zero, and no weight moves but by the optimiser's memory"
        if zero
        else "is the tangents' alone"
    )
    return _notice(
        "unmoved",
        f"Step {step + 1}: expected probes to change an input of a box, got the base's. They show nothing, "
        "so none are asked beyond those of the start. Either the layer before the box is saturated, as tanh "
        "is far from zero, or its numbers are so large that mu is lost in rounding. The gradient of this "
        f"step {gradient}. Training goes on: watch a held-out loss ({HELD_OUT}), lower the learning rate, or "
        "keep what that layer is given small, by a norm or a penalty.",
    )


def _purchase(before: State, after: State) -> str:
    return f"probes: {after.probes}, time {_time(before)}"


def _last(terms: TrustTerms) -> str:
    return (
        f" Later changes are not said: a step then asks for up to {1 + terms.most} times these rows, see "
        "tangent_probes and tangent_distrusted in metrics()."
    )


def _time(state: State) -> int:
    return min(1 + state.returned, 2)


def _notice(name: str, words: str) -> Notice:
    return Notice(name, words, TangentWarning)


def _left(terms: TrustTerms, step: int) -> str:
    """How many steps are left, where a remedy says that it takes more."""
    steps = SEVERAL if terms.last is None else terms.last - step - 1
    return f" There {'is' if steps == 1 else 'are'} {counted(steps, 'step')} left." if steps < SEVERAL else ""


def _broken(step: int, verdict: TrustVerdict, tried: bool = False) -> str:
    """Which limits are broken, and by how much; `tried`: in a check of this step, which leaves no trace."""
    state = verdict.state
    faults = "; and ".join(fault.expectation for fault in verdict.faults)
    of_check = any(fault.name != "error" for fault in verdict.faults)
    if of_check and not tried and state.checked is not None and state.checked != step:
        faults += f" (in the check of step {state.checked + 1})"
    return f"Step {step + 1}: expected {faults}"


def _cost(terms: TrustTerms, state: State, probes: int) -> str:
    return (
        f"From now on {_probes(probes)} until trust returns: a step asks the boxes for {1 + probes} times "
        f"the rows of a first-order step instead of {1 + state.probes}, within max_rows={terms.asked:g}."
    )


def _advice(terms: TrustTerms, verdict: TrustVerdict, noisy: bool) -> str:
    """What a user can do where no remedy is left."""
    risk, state, most = "Training may be worse than none", verdict.state, 2 - terms.policy.agreement
    if any(fault.name == "agreement" and fault.found > most for fault in verdict.faults):
        risk = "The loss falls along the gradient, by more than it says; Adam's steps ignore its length"
    words = (
        f"{risk}: watch a held-out loss ({HELD_OUT}). Move the network less in a step; use LossGradient with "
        "sparse coordinates (sparse-cge); or "
    )
    if not terms.learning:
        return words + "take a tangent that learns."
    if noisy:
        return (
            f"{words}take larger batches, over which the boxes' noise is averaged. No probes are added: they "
            "change the loss by less than the noise does. zo.ProbedGradient takes wider ones, by its mu."
        )
    if state.flat:  # of which probes show nothing
        return f"{words}prefit the tangent on more of the box's answers, or take another kind."
    if not state.probes:
        return (
            f"{words}prefit the tangent on more of the box's answers, take another kind, or allow probes: "
            f"max_rows={terms.asked:g} allows none."
        )
    more = 1 + 2 * state.probes
    other = "".join(words for words, kinds in ADVICE.items() if not set(kinds).intersection(terms.kinds))
    return (
        f"{words}{other}{'or ' if other else ''}allow more probes: max_rows={terms.asked:g} allows no more, "
        f"{2 * state.probes} of them take {more} times the rows of a first-order step."
    )


def _probes(number: int) -> str:
    return counted(number, "probe")
