"""All sentences about trust in tangents, as notices with a name each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blackbox.notices import Notice
from blackbox.words import counted
from zo.errors import TangentWarning
from zo.tangents.trust.evidence import TOO_SHORT, Evidence, FailedRows, FewDigits, SixteenBits
from zo.tangents.trust.trust_terms import State, TrustTerms
from zo.tangents.trust.verdict import RARELY, TrustVerdict

UNLIKE = 1e-5  # of the loss: what the same rows may differ by when they are asked again, as sums are rounded
HELD_OUT = "zo.KeepBest, or a run's validation"
SEVERAL = 25  # steps that the remedies of tangents take
UNSHOWN = 3  # checks in a row that showed nothing, since rows failed: after these it is said; decision 34
CONTROL = (
    " Where tangents are in doubt, the gradient that is cut at the boxes (no-gradient) may train better and "
    "takes no more rows: compare, see docs/howto/trust.md."
)


def of_evidence(terms: TrustTerms, state: State, evidence: Evidence) -> Iterator[Notice]:
    """Yield the notices that a step's evidence gives by itself, whatever the verdict.

    Args:
        terms: the fixed terms of trust.
        state: the trust after the step.
        evidence: the evidence of the step.
    """
    check, at = evidence.check, f"Step {evidence.step + 1}: "
    reason = check.reason
    if check.flat is not None and state.flat:
        every = terms.limits.check_every
        clause = f", and there is a check in every {RARELY * every} steps alone" if every else ""
        student = "" if "StudentTangent" in terms.kinds else " Take a StudentTangent, for its values."
        yield _notice(
            "flat",
            f"{at}expected a box that answers a little otherwise where its input is moved a little, got the "
            f"very same answers in {check.flat:.0%} of the rows: it is constant in pieces, as trees, tables, "
            "labels and rounded outputs are. What is asked beside training's own rows shows nothing of "
            f"it{clause}.{student} Whether the tangent's slopes are of use only a held-out "
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
            f"{at}expected the same answers where the boxes are asked the same rows again, or nearly the "
            f"same, got a mean loss that differs by {check.unlike:.1e} of it. A box is noisy, or has a state "
            "that goes on from call to call, such as a warm start, a counter or a buffer: `blackbox check` "
            "tells which. Noise is averaged over rows and steps; a state is not, and its part of the "
            "gradient is wrong: reset it in each call, or make it an input and an output. Checks along the "
            "gradient show nothing "
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
    remark = "This is the last step, so nothing is done about it: judge the weights by held-out data."
    return _notice("last step", f"{_broken(step, verdict)}. {remark}{control}")


def begun(terms: TrustTerms, step: int, verdict: TrustVerdict, done: Sequence[str], control: str) -> Notice:
    """A remedy has begun: why, and what is done from now on."""
    what = f"From now on {' and '.join(done)}, for no more rows."
    name = f"{', '.join(done)}, step {step}"
    return _notice(name, f"{_broken(step, verdict)}. {what}{_left(terms, step)}{control}")


def stuck(terms: TrustTerms, step: int, verdict: TrustVerdict) -> Notice:
    """No remedy is left."""
    return _notice(stuck_name(verdict.state), f"{_broken(step, verdict)}. {_advice(terms, verdict)}")


def stuck_name(state: State) -> str:
    """The name of the notice `stuck`, which is given again, once, where trust had returned."""
    return f"stuck, time {min(1 + state.returned, 2)}"


def unidentified(step: int, inputs: Sequence[str]) -> Notice:
    """Inputs whose derivative values do not show and that are not dithered."""
    return _notice(
        "unidentified",
        f"Step {step + 1}: expected inputs that weights move to differ between rows by more than the other "
        f"inputs determine, got {'; and '.join(inputs[:3])}{' and others' if inputs[3:] else ''}: the same "
        "in all rows, or a function of the others, and without dither (Limits(excite=0)). Values show "
        "nothing of that derivative: what a tangent says of it is chance. Leave excite out, or "
        "add a little noise in each row.",
    )


def _notice(name: str, words: str) -> Notice:
    return Notice(name, words, TangentWarning)


def _left(terms: TrustTerms, step: int) -> str:
    """Say how many steps are left, if fewer than a remedy may take."""
    steps = SEVERAL if terms.last is None else terms.last - step - 1
    return f" There {'is' if steps == 1 else 'are'} {counted(steps, 'step')} left." if steps < SEVERAL else ""


def _broken(step: int, verdict: TrustVerdict) -> str:
    """Name the limits that are broken, with the figures."""
    state = verdict.state
    faults = "; and ".join(fault.expectation for fault in verdict.faults)
    of_check = any(fault.name != "error" for fault in verdict.faults)
    if of_check and state.checked is not None and state.checked != step:
        faults += f" (in the check of step {state.checked + 1})"
    return f"Step {step + 1}: expected {faults}"


def _advice(terms: TrustTerms, verdict: TrustVerdict) -> str:
    """Return advice for a user where no remedy is left: the gradient itself gets no better."""
    risk, most = "Training may be worse than none", 2 - terms.limits.thresholds.agreement
    if any(fault.name == "agreement" and fault.found > most for fault in verdict.faults):
        risk = "The loss falls along the gradient, by more than it says; Adam's steps ignore its length"
    choice = "prefit the tangent on more of the box's answers, or take another kind"
    return (
        f"{risk}, and tangents have nothing left to try: watch a held-out loss ({HELD_OUT}), and stop where "
        "it rises. Or move the network less in a step; "
        f"{choice if terms.learns else 'take a tangent that learns'}; or take another method: LossGradient "
        "with sparse coordinates (sparse-cge), or the gradient that is cut at the boxes (no-gradient)."
    )
