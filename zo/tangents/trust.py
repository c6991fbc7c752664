"""Trust: how well tangents predict, whether the loss falls along their gradient, and what follows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.checks import check_count, check_number, check_positive
from zo.errors import TangentWarning
from zo.evaluators.evaluator import Problem, mean_changes
from zo.evaluators.loop import loop_losses
from zo.evaluators.state import Snapshot
from zo.perturbation import Directions
from zo.tangents.models.values import Form
from zo.tangents.pairs import CallPairs, reciprocal, together
from zo.tangents.recording import RecordedCall, Recorder
from zo.tangents.tangent import Tangent, sources

Squares = tuple[float, float]  # of errors, and of what they are measured by

FORETOLD = 1e-3  # of the loss: the change along the gradient that the query is made for
FARTHEST = 1e-2  # and the most where the box is noisy: further on it would be curvature that is measured
TOLD = 5.0  # times its noise: a change that is told from it
WORST = 10.0  # errors above count as this: one step in which nothing is known is not all that counts
FIRST_CHECK = 10  # steps, where checks are rarer: a tenth of a short run
FALL = 0.1  # an error that falls by less between two verdicts falls no more


# Predictions


@torch.no_grad()
def predict_and_learn(tangent: Tangent, calls: Sequence[CallPairs]) -> list[Squares | None]:
    """Let a tangent predict what a step has shown, then learn from it.

    Args:
        tangent: of one box.
        calls: of that box in the step, with its units, in their order. Responses are predicted where there
            are probes, else the outputs.

    Returns:
        For each call two sums of squares, for `relative_error`; None where there was nothing to predict.
    """
    squares = [_squares(tangent, pairs) for pairs in calls]
    for pairs in calls:
        tangent.see(pairs)
    if calls:
        tangent.observe(together(calls))
    return squares


def relative_error(squares: Sequence[Squares | None]) -> float | None:
    """The root of errors over what they are measured by, of several calls together.

    Each output counts in units of its usual response, so a small one that is wrong shows.

    Returns:
        0 for a perfect prediction, 1 for one as good as predicting no response, or the mean value; infinity
        where a response was predicted and there was none; None where there was nothing to predict.
    """
    known = [each for each in squares if each is not None]
    if not known:
        return None
    error, size = (math.fsum(column) for column in zip(*known, strict=True))
    return math.sqrt(error / size) if size else (math.inf if error else 0.0)


def _squares(tangent: Tangent, pairs: CallPairs) -> Squares | None:
    if len(pairs.d):
        chosen = pairs.valid.nonzero(as_tuple=True)  # a mask would be waited for at each use
        if not len(chosen[0]):  # as at a call before which the network has no part
            return None
        found, true, centre = tangent.predict(pairs), pairs.response, 0.0
    else:
        found, true, chosen = tangent.predict_values(pairs), pairs.y, pairs.alive.nonzero(as_tuple=True)
        if found is None or len(chosen[0]) < 2:  # one value is its own mean
            return None
        centre = true[chosen].double().mean(dim=0)
    found, true, unit = found[chosen].double(), true[chosen].double(), pairs.response_scale.double()
    unit = torch.where(unit.any(), unit, 1.0)  # none has ever changed: they are compared as they are
    apart = [found - true, true - centre]
    if not len(pairs.d) and any(place is not None for place in sources(pairs.inputs, pairs.outputs)):
        # of a box that moves a state on, the step that it makes is what counts
        apart.append(true - Form(pairs.inputs, pairs.outputs, ()).followed(pairs.z)[chosen].double())
    error, *sizes = torch.stack([(each * reciprocal(unit)).square().sum() for each in apart]).tolist()
    return error, min(sizes)


# The check along the gradient


@dataclass(frozen=True)
class Check:
    """What a query along the gradient has shown.

    Attributes:
        agreement: the change of the loss over what the gradient foretells, 1 for the true gradient; None if
            it cannot be told: the gradient is zero, or a row failed here that did not in the base.
        missed: the relative error with which the tangents' J d told the responses of the boxes; None where
            nothing changed, or the boxes are noisy.
        rows: that the boxes were asked for.
        queries: that were made.
        noise: the standard deviation of the change of the mean loss when nothing is changed; None where that
            is not known yet.
    """

    agreement: float | None = None
    missed: float | None = None
    rows: int = 0
    queries: int = 0
    noise: float | None = None


@torch.no_grad()
def checked(
    problem: Problem,
    boxes: Sequence[BlackBoxFunction],
    tangents: Sequence[Tangent],
    calls: Sequence[RecordedCall],
    pairs: Sequence[CallPairs],
    base: Tensor,
    gradients: Sequence[Tensor],
    before: Snapshot,
    watch: TrustWatch,
) -> Check:
    """What one query along the gradient, with the masks that the base drew, says of gradient and tangents.

    The agreement, [L(theta + h g / |g|) - L(theta)] / (h |g|), and how well the tangents' J d tells the
    responses of the boxes to what the query changes of their inputs.

    h is such that g foretells a change by a thousandth of the loss. In float32 that is some 1e4 units of
    the loss's rounding. A probe's length, mu sqrt(d), is far too long: a probe's direction is random, and
    hardly any of it changes the loss, while along g all does, and what is measured is the curvature: for
    true gradients changes 2 to 4 times those foretold on the wake flow, and up to 50 times on a chaotic
    system. The way is uphill, where near a minimum curvature adds to the change instead of hiding it.

    The first check that finds fault is made sure of by another query, for which nothing is changed. If the
    loss changes all the same the boxes are noisy: then and from then on steps are as long as a change needs
    to be told from the noise, and where none is long enough nothing is asked and nothing said.

    Args:
        problem: of the step.
        boxes: whose rows are counted.
        tangents: of each box.
        calls: of the base.
        pairs: of each call.
        base: losses `(rows,)`, NaN where a row failed.
        gradients: g, tensor by tensor.
        before: buffers and generators as the base found them.
        watch: what finds fault, and knows the noise.
    """
    flat = torch.cat([gradient.reshape(-1).to("cpu", torch.float64) for gradient in gradients])
    slope = float(flat.norm())
    size = float(base[torch.isfinite(base)].double().abs().mean())
    if not slope or not size:
        return Check(noise=watch.noise)
    foretold = max(FORETOLD * size, TOLD * (watch.noise or 0.0))
    if foretold > FARTHEST * size:
        return Check(noise=watch.noise)

    def changes(length: float) -> tuple[Tensor, Recorder]:
        """Of the loss of each row, the weights so far uphill, and what the boxes were asked."""
        after, recorder = Snapshot(problem.network), Recorder(boxes)
        move = Directions((length / slope * flat).to(problem.parameters.dtype)[None])
        before.restore()
        try:
            with recorder.recording():
                return loop_losses(problem, move, Snapshot(problem.network)) - base, recorder
        finally:
            after.restore()

    change, recorder = changes(foretold / slope)
    mean = float(mean_changes(base, change))
    agreement = mean / foretold if math.isfinite(mean) else None
    missed = None if watch.noise else _missed(boxes, tangents, calls, pairs, recorder)
    found = Check(agreement, missed, recorder.rows, 1, watch.noise)
    if watch.noise is not None or not watch.doubts(agreement, missed):
        return found
    again, recorder = changes(0.0)
    again = again[torch.isfinite(again)].double()
    noise = float(again.square().sum().sqrt()) / max(len(again), 1)
    found = replace(found, rows=found.rows + recorder.rows, queries=2, noise=noise)
    return replace(found, agreement=None, missed=None) if noise else found


def _missed(
    boxes: Sequence[BlackBoxFunction],
    tangents: Sequence[Tangent],
    calls: Sequence[RecordedCall],
    pairs: Sequence[CallPairs],
    recorder: Recorder,
) -> float | None:
    """The relative error of J d against the responses in the check's calls, in units of a usual response."""
    if [place for place, _, _ in recorder.seen] != [call.box for call in calls]:
        return None  # the objective calls others when its weights are moved
    squares: list[Squares | None] = []
    for (place, inputs, outputs), call, own in zip(recorder.seen, calls, pairs, strict=True):
        if any(t.shape != kept[0].shape for t, kept in zip(inputs, call.inputs, strict=True)):
            return None
        both = (
            tuple(torch.stack([kept[0], t]) for kept, t in zip(base, moved, strict=True))
            for base, moved in ((call.inputs, inputs), (call.outputs, outputs))
        )
        alive = torch.ones(len(own.z), dtype=torch.bool, device=own.z.device)
        seen = RecordedCall(place, *both).pairs(boxes[place], alive)
        valid = seen.valid[0] & own.alive
        if bool(valid.any()):
            found = tangents[place].apply(own, seen.d)[0]
            true, unit = seen.response[0], own.response_scale.double()
            short = reciprocal(unit) if unit.any() else torch.ones_like(unit)
            error, size = ((each[valid].double() * short).square().sum() for each in (found - true, true))
            squares.append((float(error), float(size)))
    return relative_error(squares)


# What is done about it


@dataclass(frozen=True)
class TrustPolicy:
    """When trust in tangents is lost and regained.

    Trust is lost when the mean of the prediction's relative error is above `lost` and falls no more, or when
    in a check the loss changed along the gradient by less than `agreement` of what the gradient says; without
    probes, also when it changed by far more, or the tangents told the boxes' responses in the check worse
    than `missed`. Then the cheapest is done that is left, and again if that does not help: tangents that can
    learn longer do, another kind takes over where there is one, and then the probes double, from none to one,
    as far as the gradient's `max_rows` allows. Each time a `TangentWarning` says what is done and what that
    costs; where nothing is left one says so, once. When the mean is below `regained` and the last check was
    good, trust is regained, and the probes halve down to those that the gradient was made with.

    The error is judged every `average` steps, and it falls while it is a tenth lower than the last time: so a
    tangent has the time to learn. The first step counts for nothing, as nothing had been learned.

    Measured on rollouts of 8 solver steps. A corrected wake flow: tangents that trained about as well as the
    true derivative had errors of .05 to .14 (512 cells) and .19 (2,048) and agreements above .9, the
    identity, a sixth worse, .33 and .5 to .9. Kuramoto-Sivashinsky (64 cells, chaotic): errors of .05 to
    .12 trained well, .15 was no better than no training through the solver, and .23 to .35, those of
    tangents that do not follow the state or have too few probes, were worse, with agreements down to -.1.

    Attributes:
        lost: the relative error of predicted responses above which trust is lost.
        regained: the relative error of predicted responses below which it is regained.
        lost_values: without probes, the relative error of predicted values above which trust is lost; it
            says less about derivatives. Regained as far below it as `regained` is below `lost`.
        agreement: the share of the change that the gradient foretells which must be there: 1 where it is
            right, 0 or less where a step against it would not lower the loss. Without probes there must not
            be more than 2 - agreement of it either.
        missed: without probes, the relative error of J d in a check above which trust is lost.
        check_every: steps between checks, each of one query, a first one after ten; None for none. The first
            that finds fault takes one more, which tells whether the boxes are noisy.
        average: steps over which the mean forgets, exponentially, and between two verdicts.

    Raises:
        ConfigurationError: a value out of its range.
    """

    lost: float = 0.25
    regained: float = 0.2
    lost_values: float = 1.0
    agreement: float = 0.5
    missed: float = 0.5
    check_every: int | None = 25
    average: int = 10

    def __post_init__(self) -> None:
        """Refuse what would never, or always, be lost."""
        check_positive("TrustPolicy", "lost", self.lost)
        check_number("TrustPolicy", "regained", self.regained, above=0, most=self.lost)
        check_positive("TrustPolicy", "lost_values", self.lost_values)
        mend = "0.5 is half of what the gradient says."
        check_number("TrustPolicy", "agreement", self.agreement, mend=mend)
        check_positive("TrustPolicy", "missed", self.missed)
        check_count("TrustPolicy", "average", self.average)
        if self.check_every is not None:
            check_count("TrustPolicy", "check_every", self.check_every)

    def checks(self, step: int) -> bool:
        """Whether a step, from 0, is one of those that are checked."""
        return self.check_every is not None and (
            (step + 1) % self.check_every == 0 or (step + 1 == FIRST_CHECK < self.check_every)
        )


@dataclass
class _State:
    """What a resumed run must know."""

    probes: int
    total: float = 0.0  # of errors, each weighted by its age
    weight: float = 0.0
    steps: int = -1  # with this many probes, the first of all apart
    learned: bool = False  # the first step is over
    agreement: float | None = None  # of the last check
    missed: float | None = None  # of the last check
    fresh: bool = False  # that check was made with this many probes
    before: float | None = None  # the mean when it was last judged
    lost: bool = False
    warned: bool = False
    noise: float | None = None  # see `Check.noise`


class TrustWatch:
    """Keeps a gradient's trust from step to step and says how many probes the next one needs.

    Args:
        policy: when to act.
        probes: how many to begin with, and the fewest.
        max_rows: what a step may cost on average, checks included, in multiples of the base's rows; at the
            least what the base, these probes and the checks take.
        learning: whether more probes can help any tangent.
    """

    def __init__(self, policy: TrustPolicy, probes: int, max_rows: float, learning: bool = True) -> None:
        checks = 1 / policy.check_every if policy.check_every else 0.0
        self.policy = policy
        self.max_rows = max(max_rows, 1 + probes + checks)
        self.fewest = probes
        self.most = max(probes, int(max_rows - 1 - checks)) if learning else probes
        self.learning = learning
        self._state = _State(probes)

    @property
    def probes(self) -> int:
        """For the next step."""
        return self._state.probes

    @property
    def limit(self) -> float:
        """The error above which trust is lost: of responses, or without probes of values."""
        return self.policy.lost if self._state.probes else self.policy.lost_values

    @property
    def lost(self) -> bool:
        """Whether trust is lost."""
        return self._state.lost

    @property
    def noise(self) -> float | None:
        """Of the loss, see `Check.noise`."""
        return self._state.noise

    def doubts(self, agreement: float | None, missed: float | None) -> bool:
        """Whether a check with this result finds fault."""
        policy = self.policy
        against = agreement is not None and agreement < policy.agreement
        if self._state.probes:
            return against
        # a model of values may foretell too little too, or be wrong where the loss is flat
        against |= agreement is not None and agreement > 2 - policy.agreement
        return against or (missed is not None and missed > policy.missed)

    @property
    def error(self) -> float | None:
        """The running mean of the relative error; None before there is one."""
        return self._state.total / self._state.weight if self._state.weight else None

    def saw(
        self,
        step: int,
        error: float | None,
        agreement: float | None,
        missed: float | None = None,
        improve: Callable[[], Sequence[str]] = tuple,
        noise: float | None = None,
    ) -> None:
        """Take in what a step has shown, and act.

        Args:
            step: its number.
            error: relative error of the tangents' predictions; None if there was nothing to predict.
            agreement: of the check; None if there was none.
            missed: of the check; None if there was none.
            improve: asked, where trust is lost, for what tangents do now that takes no more rows, in words.
            noise: as the check knows it.

        Warns:
            TangentWarning: trust is lost, and what is done about it: tangents learn longer, another takes
                over, probes are added, or nothing is left within `max_rows`.
        """
        state = self._state
        state.steps += 1
        state.noise = state.noise if noise is None else noise
        if error is not None and state.learned:
            keep = 1.0 - 1.0 / self.policy.average
            state.total = keep * state.total + (1.0 - keep) * (error if error < WORST else WORST)  # or NaN
            state.weight = keep * state.weight + (1.0 - keep)
        state.learned |= error is not None
        if agreement is not None:
            state.agreement, state.missed, state.fresh = agreement, missed, True
        due = state.steps > 0 and state.steps % self.policy.average == 0
        if due or (agreement is not None and state.steps >= self.policy.average):
            self._judge(step, due, improve)

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and the probes."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._state = _State(**state)

    def _judge(self, step: int, due: bool, improve: Callable[[], Sequence[str]]) -> None:
        """`due`: the error too, which a check in between does not make old enough."""
        policy, state, error = self.policy, self._state, self.error
        against = self.doubts(state.agreement, state.missed)
        stays = good = False
        if due and error is not None:
            stays = state.before is not None and error > max(self.limit, (1.0 - FALL) * state.before)
            good = error < policy.regained / policy.lost * self.limit
            state.before = error
        if stays or (against and state.fresh):
            state.lost = True
            more = min(max(2 * state.probes, 1), self.most)
            told = improve()
            if told:
                _warn(f"{self._found(step)}. From now on {' and '.join(told)}, for no more rows.")
                self._take(state.probes)
            elif more > state.probes:
                _warn(f"{self._found(step)}. {self._cost(more)}")
                self._take(more)
            elif not state.warned:
                state.warned = True
                _warn(f"{self._found(step)}. {self._stuck()}")
        elif good and not against:
            state.lost = state.warned = False
            if state.probes > self.fewest:
                self._take(max(state.probes // 2, self.fewest))

    def _take(self, probes: int) -> None:
        """Other probes show other errors, so the mean begins anew; with none they are of something else."""
        state = self._state
        if bool(probes) != bool(state.probes):
            state.before = state.agreement = state.missed = None
        state.probes, state.steps, state.total, state.weight, state.fresh = probes, 0, 0.0, 0.0, False

    def _found(self, step: int) -> str:
        policy, state = self.policy, self._state
        wanted = f"expected tangents to predict with a relative error of at most {self.limit:g}"
        known = "none" if self.error is None else f"{self.error:.3g}"
        found = f"found {known}, the mean over some {policy.average} steps, with {state.probes} probes"
        if state.agreement is not None:
            wanted += f" and the loss to change by at least {policy.agreement:g} of what their gradient says"
            found += f", and {state.agreement:.3g} of that change"
        if state.missed is not None and not state.probes:
            wanted += (
                f", and the boxes' responses along it to be told with an error of at most {policy.missed:g}"
            )
            found += f", and an error of {state.missed:.3g}"
        return f"Step {step}: {wanted}, {found}"

    def _cost(self, probes: int) -> str:
        return (
            f"From now on {probes} probes until trust returns: a step asks the boxes for {1 + probes} times "
            f"the rows of a first-order step instead of {1 + self.probes}, within max_rows={self.max_rows:g}."
        )

    def _stuck(self) -> str:
        words = (
            "Training may be worse than none: watch a held-out loss (zo.KeepBest). Move the network less in "
            "a step; use LossGradient with sparse coordinates; or "
        )
        if not self.learning:
            return words + "take a tangent that learns."
        if not self.probes:
            return (
                f"{words}prefit the tangent on more of the box's answers, take another kind, or allow "
                f"probes: max_rows={self.max_rows:g} allows none."
            )
        more = 1 + 2 * self.probes
        return (
            f"{words}put SecantTangent outermost, take a StudentTangent, or allow more probes: "
            f"max_rows={self.max_rows:g} allows no more, {2 * self.probes} of them take {more} times the "
            "rows of a first-order step."
        )


def _warn(words: str) -> None:
    warnings.warn(words, TangentWarning, stacklevel=5)  # the caller of backward
