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
from zo.tangents.playback.playback import evaluate_again
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
    count = sum(int(pairs.valid.sum()) for pairs in calls)
    same = sum(int((pairs.valid & (pairs.response == 0).all(dim=-1)).sum()) for pairs in calls)
    return same / count if count else None


@torch.no_grad()
def checked(gradient: StepGradient, watch: TrustWatch) -> Check:
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
    the gradient of their mean, taken again from the recorded answers. More, or where those that failed have
    most of the gradient, and the check shows nothing.

    Args:
        gradient: the gradient g, with all that it was taken from.
        watch: what finds fault, and knows the noise.
    """
    uphill = _Uphill(gradient, watch.noise)
    size, check = uphill.size, Check(noise=watch.noise)
    if not uphill.slope or not size:
        return check
    change = max(PREDICTED * size, BEYOND_NOISE * (watch.noise or 0.0))
    if uphill.digits is not None and change <= FARTHEST * size:
        change = max(change, uphill.rounding() / COARSE)
        if change > FARTHEST * size:
            return replace(check, digits=uphill.digits)
    if change > FARTHEST * size:
        return check
    check, coarse = uphill.check(change)
    if coarse > COARSE and change < FARTHEST * size:
        check, coarse = uphill.check(FARTHEST * size)
    farther = NEAREST * float(gradient.step.parameters.flat().norm()) * uphill.slope
    unmoved = check.failed is None and check.flat is None  # no input of a box has changed in any digit
    if check.digits is None and (unmoved or is_flat(check.flat)) and change < farther:
        change = farther
        check, coarse = uphill.check(change)
    if watch.doubts(check) and (narrow := uphill.narrow()) is not None:
        result = Check(noise=watch.noise, narrow=narrow)
        return replace(result, rows=uphill.rows, queries=uphill.queries)
    doubt = watch.doubts(check) or watch.may_be_cut(check)
    if doubt or (watch.noise is None and abs(check.agreement or 0.0) > WILD):
        noise = uphill.noise() if watch.noise is None else watch.noise
        unlike = noise / size if watch.noise is None else None
        check = replace(check, noise=noise, unlike=unlike)
        if noise and watch.noise is None:
            check = replace(check, agreement=None, missed=None, agreement_of_rows=None, balance=None)
        elif doubt and not noise and coarse <= COARSE:
            nearer, coarse = uphill.check(change / NEARER)
            if nearer.agreement is not None and coarse <= COARSE:
                cut = missing(check.balance, nearer.balance) if watch.may_be_cut(check) else None
                if cut is not None:
                    back, _ = uphill.check(-change / NEARER)
                    cut = of_slope(nearer.balance, back.balance)
                check = replace(nearer, noise=noise, unlike=unlike, cut=cut)
    return replace(check, rows=uphill.rows, queries=uphill.queries)


class _Uphill:
    """The queries of a check, with the weights moved along the gradient; see `checked`.

    Args:
        gradient: the gradient that a step has taken.
        noise: the noise of the loss, as far as it is known.

    Attributes:
        slope: the length of the gradient.
        size: the size of the rows' losses, their mean.
        rows: how many rows the boxes were asked for so far.
        queries: how many queries were made.
        digits: the fewest significant digits of a box's answers; None where all have those of their dtype.
    """

    def __init__(self, gradient: StepGradient, noise: float | None) -> None:
        window = gradient.window
        self._step_gradient, self._noise = gradient, noise
        self._dither = Repeated(window.calls)
        self._gradient = _flat(gradient.gradients)
        self.slope = float(self._gradient.norm())
        self.size = float(window.losses[torch.isfinite(window.losses)].double().abs().mean())
        self.rows = self.queries = 0
        self._digits = _digits(gradient.boxes, window)
        self.digits = min(self._digits.values(), default=None)

    def check(self, predicted: float) -> tuple[Check, float]:
        """A query so far uphill, or downhill, that the gradient predicts this change of the mean loss.

        Returns:
            What it shows, and how much of the responses is rounding.
        """
        window, step = self._step_gradient.window, self._step_gradient.step
        change, recorder = self._changes(predicted / self.slope)
        measurements = _responses(self._step_gradient, recorder)
        responses = _predicted(self._step_gradient, measurements)
        rounding = _rounding(self._step_gradient.boxes, window, measurements, self._digits)
        response_error, coarse = _missed(self._step_gradient.pairs, measurements, responses, rounding)
        alive, counting = torch.isfinite(window.losses), torch.isfinite(change)
        failure_share = 1.0 - float(counting.sum()) / float(alive.sum())
        expectation, of_rows, balance = predicted, None, None
        errors: list[Tensor] | None = None
        if failure_share <= FEW:
            listeners, after = [_Listening(at) for at in self._step_gradient.at_calls], Snapshot(step.network)
            self._step_gradient.before.restore()
            of_answered = evaluate_again(step, self._step_gradient.boxes, window, listeners, counting).gradients
            after.restore()
            if failure_share:
                expectation = predicted / self.slope**2 * float(_flat(of_answered) @ self._gradient)
            errors = _errors(measurements, responses, listeners)
            of_rows = _of_rows(errors, change, counting)
        # where the rows that are left hardly change along the gradient, their share in it was small
        if failure_share > FEW or not expectation / predicted >= 0.5:
            return Check(noise=self._noise, failed=failure_share), coarse
        agreement = float(change[counting].double().mean()) / expectation
        if errors is not None:
            balance = agreement - sum(float(error.sum()) for error in errors) / expectation
        same = flat_share(measurements)
        if self.digits is not None and coarse > COARSE:
            return Check(noise=self._noise, digits=self.digits), coarse
        if is_flat(same):  # neither number says anything of the gradient
            return Check(noise=self._noise, flat=same), coarse
        if self._noise or coarse > COARSE:
            response_error = of_rows = balance = None
        return Check(
            agreement, response_error, of_rows, noise=self._noise, flat=same, balance=balance
        ), coarse

    def rounding(self) -> float:
        """The standard deviation that rounding gives a change of the mean loss; this takes no query."""
        gradient, window = self._step_gradient, self._step_gradient.window
        listeners = [_Listening(at) for at in gradient.at_calls]
        after = Snapshot(gradient.step.network)
        gradient.before.restore()
        evaluate_again(gradient.step, gradient.boxes, window, listeners, torch.isfinite(window.losses))
        after.restore()
        rounding = _rounding(gradient.boxes, window, gradient.pairs, self._digits)
        return _of_loss(rounding, listeners)

    def narrow(self) -> str | None:
        """The dtype of numbers of 16 bits that depend on the weights; None for none. Takes no query."""
        gradient, window = self._step_gradient, self._step_gradient.window
        monitor, after = Narrow(), Snapshot(gradient.step.network)
        self._step_gradient.before.restore()
        alive = torch.isfinite(window.losses)
        with uncompiled(), monitor:
            evaluate_again(gradient.step, gradient.boxes, window, gradient.at_calls, alive)
        after.restore()
        return monitor.seen

    def noise(self) -> float:
        """The standard deviation of the change of the mean loss by a query that moves nothing."""
        change, _ = self._changes(0.0)
        change = change[torch.isfinite(change)].double()
        return float(change.square().sum().sqrt()) / max(len(change), 1)

    def _changes(self, length: float) -> tuple[Tensor, Recorder]:
        """The changes of the rows' losses so far uphill, and a record of what the boxes were asked."""
        network, recorder = (
            self._step_gradient.step.network,
            Recorder(self._step_gradient.boxes, self._dither),
        )
        after = Snapshot(network)
        move = Directions(
            (length / self.slope * self._gradient).to(self._step_gradient.step.parameters.dtype)[None],
        )
        self._step_gradient.before.restore()
        try:
            with recorder.recording():
                losses = loop_losses(self._step_gradient.step, move, Snapshot(network))[0]
                return losses - self._step_gradient.window.losses, recorder
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


def _responses(gradient: StepGradient, recorder: Recorder) -> list[CallPairs]:
    """The check's calls against the base's, as pairs; none where the two differ in more than numbers."""
    if [query.box for query in recorder.seen] != [call.box for call in gradient.window.calls]:
        return []  # the objective calls others when its weights are moved
    calls = []
    for query, call, at in zip(recorder.seen, gradient.window.calls, gradient.at_calls, strict=True):
        if any(t.shape != base[0].shape for t, base in zip(query.inputs, call.inputs, strict=True)):
            return []
        both = (
            tuple(torch.stack([base[0], t]) for base, t in zip(of_base, measurement, strict=True))
            for of_base, measurement in ((call.inputs, query.inputs), (call.outputs, query.outputs))
        )
        alive = torch.ones(len(at.rows.z), dtype=torch.bool, device=at.rows.z.device)
        measurement = RecordedCall(call.box, *both).pairs(gradient.boxes[call.box], alive)
        calls.append(replace(measurement, valid=measurement.valid & at.rows.alive))
    return calls


def _predicted(gradient: StepGradient, responses: Sequence[CallPairs]) -> list[Tensor]:
    """J d in each of the check's calls, `(rows, size_out)`; no tangent is asked where nothing has changed."""
    return [
        at.push(measurement.d)[0] if bool(measurement.valid.any()) else measurement.response[0]
        for at, measurement in zip(gradient.at_calls, responses, strict=False)
    ]


def _missed(
    calls: Sequence[CallPairs],
    responses: Sequence[CallPairs],
    predictions: Sequence[Tensor],
    rounding: Sequence[Tensor],
) -> tuple[float | None, float]:
    """How well J d predicts the responses in the check's calls, in units of a usual response.

    Returns:
        The relative error of J d; and how much rounding of the outputs makes up of the responses, of those
        that J d predicts where they are larger: where no output answers it is not rounding that hides them.
    """
    squares: list[Squares | None] = []
    roundings: list[Squares | None] = []
    for pairs, measurement, answer, units in zip(calls, responses, predictions, rounding, strict=False):
        valid = measurement.valid[0]
        if bool(valid.any()):
            true, unit = measurement.response[0], pairs.response_scale.double()
            short = reciprocal(unit) if unit.any() else torch.ones_like(unit)
            error, size, expectation, blur = (
                float((numbers[valid].double() * short).square().sum())
                for numbers in (answer - true, true, answer, units)
            )
            squares.append((error, size))
            roundings.append((blur, max(size, expectation)))
    return relative_error(squares), relative_error(roundings) or 0.0


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
    for call, measurement in zip(window.calls, calls, strict=False):
        size = measurement.y.double().abs()
        units = size * torch.finfo(measurement.y.dtype).eps
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


def _of_loss(rounding: Sequence[Tensor], listeners: Sequence[_Listening]) -> float:
    """The standard deviation of what the rounding of answers makes of the mean loss's change."""
    total = 0.0
    for at, units in zip(listeners, rounding, strict=False):
        if at.arrived is not None:
            total += float((at.arrived.double() * units).square().sum())
    return math.sqrt(total)


def _errors(
    responses: Sequence[CallPairs],
    predictions: Sequence[Tensor],
    listeners: Sequence[_Listening],
) -> list[Tensor] | None:
    """What the errors of J d change of the mean loss, by call and by row of it, `(rows,)`; None if not known.

    Args:
        responses: the responses of the check's calls.
        predictions: J d in them.
        listeners: of each call, what has received the gradient of the mean loss of the rows that count.
    """
    if not responses:
        return None
    errors = []
    for at, measurement, answer in zip(listeners, responses, predictions, strict=True):
        if at.arrived is not None:
            errors.append((at.arrived.double() * (measurement.response[0] - answer).double()).sum(dim=1))
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
    error = torch.zeros_like(change, dtype=torch.float64)
    for by_row in errors:
        if len(by_row) % len(error):
            return None
        error += count * by_row.reshape(len(error), -1).sum(dim=1).to(error.device)
    measurement = change[counting].double()
    expectation = measurement - error[counting]
    lengths = float(measurement.norm() * expectation.norm())
    return float(measurement @ expectation) / lengths if 0 < lengths < math.inf else None
