"""The check along the gradient: whether the loss changes as the gradient of tangents predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.digits import significant_digits
from zo.evaluators.loop import loop_losses
from zo.evaluators.state import Snapshot
from zo.objective import uncompiled
from zo.perturbation import Directions
from zo.tangents.evidence.balance import NEARER, missing, of_slope
from zo.tangents.evidence.predictions import Squares, relative_error
from zo.tangents.playback.playback import replay
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.playback.way_back import Narrow
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.record.recording import RecordedCall, Recorder, Repeated
from zo.tangents.record.window import Window
from zo.tangents.tangent import Linearised
from zo.tangents.trust import Check, TrustWatch, is_flat

PREDICTED = 1e-3  # of the loss: the change along the gradient that the query is made for; decision 15
FARTHEST = 1e-2  # and the most where the box is noisy or rounds: further on curvature would be measured
NEAREST = 1e-4  # of the weights' length: a shorter way may change no digit of an answer; decision 65
COARSE = 0.2  # of the responses, or of the loss's change, that is rounding: further on they are more
FEWEST_DIGITS = 4  # that a program is supposed to have printed; fewer are shares, labels and the like
BEYOND_NOISE = 5.0  # times its noise: a change that can be distinguished from it
WILD = 100.0  # times as much as predicted: the loss changes by itself, in whatever direction
FEW = 0.1  # of a check's rows that may fail, for the rest to decide; decision 34
FEWEST_ROWS = 4  # whose changes are compared one by one; of fewer the cosine is chance; decision 59


def flat_share(calls: Sequence[CallPairs]) -> float | None:
    """The share of the moved rows whose answers stayed to the bit; None if no input changed.

    Of a smooth box hardly any stay. One that is constant in pieces, as trees are, shows nothing of its
    response in them, however many are asked.

    Args:
        calls: with the changes of some probes, or of a check.
    """
    changed = sum(int(pairs.valid.sum()) for pairs in calls)
    same = sum(int((pairs.valid & (pairs.response == 0).all(dim=-1)).sum()) for pairs in calls)
    return same / changed if changed else None


@torch.no_grad()
def checked(taken: StepGradient, watch: TrustWatch) -> Check:
    """What one query along the gradient, with the masks that the base drew, says of gradient and tangents.

    The agreement, [L(theta + h g / |g|) - L(theta)] / (h |g|), and how well the tangents' J d predicts the
    responses of the boxes to what the query changes of their inputs. And both for each row of the batch: what
    a row's loss changes by was predicted up to the sum, over the calls, of v (F(z + d) - F(z) - J d), where
    v is the gradient that arrives at a call's outputs and d the change of its inputs.

    h is such that g predicts a change by a thousandth of the loss. In float32 that is some 1e4 units of
    the loss's rounding. A probe's length, mu sqrt(d), is far too long: a probe's direction is random, and
    hardly any of it changes the loss, while along g all does, and what is measured is the curvature: for
    true gradients changes 2 to 4 times those predicted on the wake flow, and up to 50 times on a chaotic
    system. The way is uphill, where near a minimum curvature adds to the change instead of hiding it.

    The first check that finds fault, or a change a hundred times the predicted one, which is no fault where
    the rows agree, is confirmed by another query, for which nothing is changed. If the loss changes all the
    same, the boxes are noisy. From then on steps are as long as a change needs to be distinguishable from
    the noise, and where none is long enough nothing is asked. Where boxes are not noisy, each check that
    finds fault is repeated, and decided, by a query a tenth as far: in front of a stiff box the way of a
    thousandth is too long, and what was measured is the curvature. Where part of the gradient seems to be
    missing, one goes as far downhill too: near a kink, as of a mean of absolute errors that are all small,
    the loss rises on both sides, which no gradient says.

    Outputs with an offset (101,325 + f in float32) are rounded by as much as they respond over so short a
    way. Then a further query goes ten times as far; where that is too short too, responses show nothing.
    Answers that a program printed with few digits are rounded as well. Then the first way is as long as the
    change of the loss needs to be distinguishable from what rounding makes of it; where none is long enough
    nothing is asked, and where responses are mostly rounding only the digits are reported.

    A gradient that is too long by orders of magnitude makes the way so short that answers stay to the bit,
    and a smooth box looks as if it were constant in pieces. Before that is said, a query goes at least a
    ten-thousandth of the weights' length.

    A network that computes in 16 bits, as under autocast, gives the box the very same inputs over so short a
    way, or others at random. A check that finds fault there shows nothing, and that is said once.

    Where at most a tenth of the rows fail that did not in the base, the others decide: what they predict is
    the gradient of their mean, taken anew from the recorded answers. More, or where those that failed have
    most of the gradient, and the check shows nothing.

    Args:
        taken: the gradient g, with all that it was taken from.
        watch: what finds fault, and knows the noise.
    """
    uphill = _Uphill(taken, watch.noise)
    size, check = uphill.size, Check(noise=watch.noise)
    if not uphill.slope or not size:
        return check
    predicted = max(PREDICTED * size, BEYOND_NOISE * (watch.noise or 0.0))
    if uphill.digits is not None and predicted <= FARTHEST * size:
        predicted = max(predicted, uphill.rounding() / COARSE)
        if predicted > FARTHEST * size:
            return replace(check, digits=uphill.digits)
    if predicted > FARTHEST * size:
        return check
    check, coarse = uphill.check(predicted)
    if coarse > COARSE and predicted < FARTHEST * size:
        check, coarse = uphill.check(FARTHEST * size)
    farther = NEAREST * float(taken.step.parameters.flat().norm()) * uphill.slope
    unmoved = check.failed is None and check.flat is None  # no input of a box has changed in any digit
    if check.digits is None and (unmoved or is_flat(check.flat)) and predicted < farther:
        predicted = farther
        check, coarse = uphill.check(predicted)
    if watch.doubts(check) and (narrow := uphill.narrow()) is not None:
        shown = Check(noise=watch.noise, narrow=narrow)
        return replace(shown, rows=uphill.rows, queries=uphill.queries)
    doubted = watch.doubts(check) or watch.may_be_cut(check)
    if doubted or (watch.noise is None and abs(check.agreement or 0.0) > WILD):
        noise = uphill.noise() if watch.noise is None else watch.noise
        unlike = noise / size if watch.noise is None else None
        check = replace(check, noise=noise, unlike=unlike)
        if noise and watch.noise is None:
            check = replace(check, agreement=None, missed=None, agreement_of_rows=None, balance=None)
        elif doubted and not noise and coarse <= COARSE:
            nearer, coarse = uphill.check(predicted / NEARER)
            if nearer.agreement is not None and coarse <= COARSE:
                cut = missing(check.balance, nearer.balance) if watch.may_be_cut(check) else None
                if cut is not None:
                    back, _ = uphill.check(-predicted / NEARER)
                    cut = of_slope(nearer.balance, back.balance)
                check = replace(nearer, noise=noise, unlike=unlike, cut=cut)
    return replace(check, rows=uphill.rows, queries=uphill.queries)


class _Uphill:
    """The queries of a check, with the weights moved along the gradient; see `checked`.

    Args:
        taken: the gradient that a step has taken.
        noise: the noise of the loss, as far as it is known.

    Attributes:
        slope: the length of the gradient.
        size: the size of the rows' losses, their mean.
        rows: how many rows the boxes were asked for so far.
        queries: how many queries were made.
        digits: the fewest significant digits of a box's answers; None where all have those of their dtype.
    """

    def __init__(self, taken: StepGradient, noise: float | None) -> None:
        window = taken.window
        self._taken, self._noise = taken, noise
        self._dither = Repeated(window.calls)
        self._gradient = _flat(taken.gradients)
        self.slope = float(self._gradient.norm())
        self.size = float(window.losses[torch.isfinite(window.losses)].double().abs().mean())
        self.rows = self.queries = 0
        self._digits = _digits(taken.boxes, window)
        self.digits = min(self._digits.values(), default=None)

    def check(self, predicted: float) -> tuple[Check, float]:
        """A query so far uphill, or downhill, that the gradient predicts this change of the mean loss.

        Returns:
            What it shows, and how much of the responses is rounding.
        """
        window, step = self._taken.window, self._taken.step
        change, recorder = self._changes(predicted / self.slope)
        seen = _responses(self._taken, recorder)
        responses = _predicted(self._taken, seen)
        rounding = _rounding(self._taken.boxes, window, seen, self._digits)
        missed, coarse = _missed(self._taken.pairs, seen, responses, rounding)
        survived, answered = torch.isfinite(window.losses), torch.isfinite(change)
        failed = 1.0 - float(answered.sum()) / float(survived.sum())
        expected, of_rows, balance = predicted, None, None
        errors: list[Tensor] | None = None
        if failed <= FEW:
            listening, after = [_Listening(at) for at in self._taken.at_calls], Snapshot(step.network)
            self._taken.before.restore()
            of_answered = replay(step, self._taken.boxes, window, listening, answered).gradients
            after.restore()
            if failed:
                expected = predicted / self.slope**2 * float(_flat(of_answered) @ self._gradient)
            errors = _errors(seen, responses, listening)
            of_rows = _of_rows(errors, change, answered)
        # where the rows that are left hardly change along the gradient, their share in it was small
        if failed > FEW or not expected / predicted >= 0.5:
            return Check(noise=self._noise, failed=failed), coarse
        agreement = float(change[answered].double().mean()) / expected
        if errors is not None:
            balance = agreement - sum(float(error.sum()) for error in errors) / expected
        same = flat_share(seen)
        if self.digits is not None and coarse > COARSE:
            return Check(noise=self._noise, digits=self.digits), coarse
        if is_flat(same):  # neither number says anything of the gradient
            return Check(noise=self._noise, flat=same), coarse
        if self._noise or coarse > COARSE:
            missed = of_rows = balance = None
        return Check(agreement, missed, of_rows, noise=self._noise, flat=same, balance=balance), coarse

    def rounding(self) -> float:
        """The standard deviation that rounding gives a change of the mean loss; this takes no query."""
        taken, window = self._taken, self._taken.window
        listening = [_Listening(at) for at in taken.at_calls]
        after = Snapshot(taken.step.network)
        taken.before.restore()
        replay(taken.step, taken.boxes, window, listening, torch.isfinite(window.losses))
        after.restore()
        rounding = _rounding(taken.boxes, window, taken.pairs, self._digits)
        return _of_loss(rounding, listening)

    def narrow(self) -> str | None:
        """The dtype of numbers of 16 bits that depend on the weights; None for none. Takes no query."""
        taken, window = self._taken, self._taken.window
        seen, after = Narrow(), Snapshot(taken.step.network)
        self._taken.before.restore()
        survived = torch.isfinite(window.losses)
        with uncompiled(), seen:
            replay(taken.step, taken.boxes, window, taken.at_calls, survived)
        after.restore()
        return seen.seen

    def noise(self) -> float:
        """The standard deviation of the change of the mean loss by a query that moves nothing."""
        change, _ = self._changes(0.0)
        change = change[torch.isfinite(change)].double()
        return float(change.square().sum().sqrt()) / max(len(change), 1)

    def _changes(self, length: float) -> tuple[Tensor, Recorder]:
        """The changes of the rows' losses so far uphill, and a record of what the boxes were asked."""
        network, recorder = self._taken.step.network, Recorder(self._taken.boxes, self._dither)
        after = Snapshot(network)
        move = Directions(
            (length / self.slope * self._gradient).to(self._taken.step.parameters.dtype)[None],
        )
        self._taken.before.restore()
        try:
            with recorder.recording():
                moved = loop_losses(self._taken.step, move, Snapshot(network))[0]
                return moved - self._taken.window.losses, recorder
        finally:
            after.restore()
            self.rows, self.queries = self.rows + recorder.rows, self.queries + 1


class _Listening(Linearised):
    """Keeps what gradient arrives at the outputs of a call, and answers as a tangent does there.

    Args:
        at: what the tangent says.

    Attributes:
        arrived: the gradient, `(rows, size_out)`; None where none has arrived.
    """

    def __init__(self, at: Linearised) -> None:
        super().__init__(at.rows)
        self._at = at
        self.arrived: Tensor | None = None

    def push(self, d: Tensor) -> Tensor:
        """The tangent's J d."""
        return self._at.push(d)

    def pull(self, v: Tensor) -> Tensor:
        """The tangent's J^T v, whose v is kept."""
        self.arrived = v
        return self._at.pull(v)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.reshape(-1).to("cpu", torch.float64) for gradient in gradients])


def _responses(taken: StepGradient, recorder: Recorder) -> list[CallPairs]:
    """The check's calls against the base's, as pairs; none where the two differ in more than numbers."""
    if [moved.box for moved in recorder.seen] != [call.box for call in taken.window.calls]:
        return []  # the objective calls others when its weights are moved
    calls = []
    for moved, call, at in zip(recorder.seen, taken.window.calls, taken.at_calls, strict=True):
        if any(t.shape != kept[0].shape for t, kept in zip(moved.inputs, call.inputs, strict=True)):
            return []
        both = (
            tuple(torch.stack([kept[0], t]) for kept, t in zip(recorded, seen, strict=True))
            for recorded, seen in ((call.inputs, moved.inputs), (call.outputs, moved.outputs))
        )
        alive = torch.ones(len(at.rows.z), dtype=torch.bool, device=at.rows.z.device)
        seen = RecordedCall(call.box, *both).pairs(taken.boxes[call.box], alive)
        calls.append(replace(seen, valid=seen.valid & at.rows.alive))
    return calls


def _predicted(taken: StepGradient, responses: Sequence[CallPairs]) -> list[Tensor]:
    """J d in each of the check's calls, `(rows, size_out)`; no tangent is asked where nothing has changed."""
    return [
        at.push(seen.d)[0] if bool(seen.valid.any()) else seen.response[0]
        for at, seen in zip(taken.at_calls, responses, strict=False)
    ]


def _missed(
    calls: Sequence[CallPairs],
    responses: Sequence[CallPairs],
    predicted: Sequence[Tensor],
    rounding: Sequence[Tensor],
) -> tuple[float | None, float]:
    """How well J d predicts the responses in the check's calls, in units of a usual response.

    Returns:
        The relative error of J d; and how much rounding of the outputs makes up of the responses, of those
        that J d predicts where they are larger: where no output answers it is not rounding that hides them.
    """
    squares: list[Squares | None] = []
    rounded: list[Squares | None] = []
    for pairs, seen, answer, units in zip(calls, responses, predicted, rounding, strict=False):
        valid = seen.valid[0]
        if bool(valid.any()):
            true, unit = seen.response[0], pairs.response_scale.double()
            short = reciprocal(unit) if unit.any() else torch.ones_like(unit)
            error, size, expected, lost = (
                float((numbers[valid].double() * short).square().sum())
                for numbers in (answer - true, true, answer, units)
            )
            squares.append((error, size))
            rounded.append((lost, max(size, expected)))
    return relative_error(squares), relative_error(rounded) or 0.0


def _digits(boxes: Sequence[BlackBoxFunction], window: Window) -> dict[tuple[int, int], int]:
    """Significant digits of boxes' answers, by box and output, of those that have fewer than their dtype.

    Those of shares and labels, as of a forest of 50 trees, count as none: such a box is constant in pieces.
    """
    answers: dict[tuple[int, int], list[Tensor]] = {}
    for call in window.calls:
        for place, (spec, output) in enumerate(zip(boxes[call.box].outputs, call.outputs, strict=True)):
            if spec.differentiable:
                answers.setdefault((call.box, place), []).append(output[0].detach().reshape(-1))
    fewer = {}
    for key, parts in answers.items():
        if parts[0].dtype in (torch.float32, torch.float64):
            digits = significant_digits(torch.cat(parts).cpu().numpy())
            if digits is not None and digits >= FEWEST_DIGITS:
                fewer[key] = digits
    return fewer


def _rounding(
    boxes: Sequence[BlackBoxFunction],
    window: Window,
    calls: Sequence[CallPairs],
    digits: dict[tuple[int, int], int],
) -> list[Tensor]:
    """The standard deviation of the rounding of responses in each of these calls, `(rows, size_out)`."""
    deviations = []
    for call, seen in zip(window.calls, calls, strict=False):
        size = seen.y.double().abs()
        units = size * torch.finfo(seen.y.dtype).eps
        first = 0
        for place, spec in enumerate(boxes[call.box].outputs):
            if spec.differentiable:
                last = first + math.prod(spec.shape)
                if (call.box, place) in digits:
                    power = size[:, first:last].log10().floor() + 1 - digits[call.box, place]
                    units[:, first:last] = 10.0**power  # 0 of an answer of 0
                first = last
        deviations.append(units / math.sqrt(6))  # of two, within one each
    return deviations


def _of_loss(rounding: Sequence[Tensor], listening: Sequence[_Listening]) -> float:
    """The standard deviation of what the rounding of answers makes of the mean loss's change."""
    total = 0.0
    for at, units in zip(listening, rounding, strict=False):
        if at.arrived is not None:
            total += float((at.arrived.double() * units).square().sum())
    return math.sqrt(total)


def _errors(
    responses: Sequence[CallPairs],
    predicted: Sequence[Tensor],
    listening: Sequence[_Listening],
) -> list[Tensor] | None:
    """What the errors of J d change of the mean loss, by call and by row of it, `(rows,)`; None if not known.

    Args:
        responses: the responses of the check's calls.
        predicted: J d in them.
        listening: of each call, what has received the gradient of the mean loss of the rows that count.
    """
    if not responses:
        return None
    errors = []
    for at, seen, answer in zip(listening, responses, predicted, strict=True):
        if at.arrived is not None:
            errors.append((at.arrived.double() * (seen.response[0] - answer).double()).sum(dim=1))
    return errors


def _of_rows(errors: Sequence[Tensor] | None, change: Tensor, counting: Tensor) -> float | None:
    """The cosine, over rows, of the changes of their losses and what is predicted of each; see `checked`.

    Args:
        errors: see `_errors`.
        change: the change of each row's loss, `(rows,)`.
        counting: the rows that count, `(rows,)` bool.
    """
    count = int(counting.sum())
    if count < FEWEST_ROWS or errors is None:
        return None
    missed = torch.zeros_like(change, dtype=torch.float64)
    for by_row in errors:
        if len(by_row) % len(missed):
            return None
        missed += count * by_row.reshape(len(missed), -1).sum(dim=1).to(missed.device)
    measured = change[counting].double()
    expected = measured - missed[counting]
    lengths = float(measured.norm() * expected.norm())
    return float(measured @ expected) / lengths if 0 < lengths < math.inf else None
