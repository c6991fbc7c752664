"""The check along the gradient: does the loss change as the gradient of tangents predicts?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zo.evaluators.loop import loop_losses
from zo.evaluators.state import Snapshot
from zo.objective import uncompiled
from zo.perturbation import Directions
from zo.tangents.evidence.balance import NEARER, missing, of_slope
from zo.tangents.evidence.responses import (
    Response,
    errors_of_responses,
    flat_share,
    predicted_of,
    responses_of,
)
from zo.tangents.evidence.rounding import digits_of, rounding_of
from zo.tangents.evidence.unmoved import unmoved_by
from zo.tangents.playback.playback import WayBack, evaluate_again
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.playback.way_back import Narrow
from zo.tangents.record.recording import Recorder, Repeated
from zo.tangents.tangent import Linearised
from zo.tangents.trust import Check, TrustWatch, is_flat
from zo.tangents.trust.evidence import FailedRows, FewDigits, SixteenBits

PREDICTED = 1e-3  # of the loss: the change along the gradient that the query is made for; decision 15
FARTHEST = 1e-2  # and the most where the box is noisy or rounds: further on curvature would be measured
NEAREST = 1e-4  # of the weights' length: a shorter way may change no digit of an answer; decision 65
COARSE = 0.2  # of the responses, or of the loss's change, that is rounding: further on they are more
BEYOND_NOISE = 5.0  # times its noise: a change that can be distinguished from it
ROUGH = 0.5  # of the changes of a query: those of one a tenth as far are less but for noise; decision 240
WILD = 100.0  # times as much as predicted: the loss changes by itself, in whatever direction
FEW = 0.1  # of a check's rows that may fail, for the rest to decide; decision 34
FEWEST_ROWS = 4  # whose changes are compared one by one; of fewer the cosine is chance; decision 59


@torch.no_grad()
def checked(gradient: StepGradient, watch: TrustWatch) -> Check:
    """Check gradient and tangents by one query along the gradient, with the masks that the base drew.

    The query measures two things. One is the agreement, [L(theta + h g / |g|) - L(theta)] / (h |g|). The
    other is the error of the tangents' J d as a prediction of the boxes' responses to the query. Both are
    known for each row of the batch, too: the error of a row's predicted change is the sum, over the calls, of
    v (F(z + d) - F(z) - J d). Here v is the gradient that arrives at a call's outputs, and d the change of
    its inputs.

    The step h is such that g predicts a change by a thousandth of the loss. In float32 that is some 1e4
    units of the loss's rounding. The length of a random query, mu sqrt(d), would be far too long: hardly any
    of that length changes the loss, while along g all of it does, and curvature would be measured. The way is
    uphill, where near a minimum curvature adds to the change instead of hiding it.

    A query that changes nothing confirms the first check that finds fault. It also confirms a change a
    hundred times the predicted one, which is no fault where the rows agree. If the loss changes all the same,
    the boxes are noisy. From then on steps are as long as a change needs to be distinguishable from the
    noise, and where none is long enough nothing is asked. Where boxes are not noisy, a query a tenth as far
    repeats and decides each check that finds fault: in front of a stiff box a thousandth of the loss is too
    far, and curvature was measured. If it changes the rows' losses as much as the first one did, that is
    noise too, which a box hides that remembers its rows. Where part of the gradient seems to be missing, a
    query goes as far downhill, too. Near a kink, as of a mean of absolute errors that are all small, the loss
    rises on both sides, which no gradient shows.

    Outputs with an offset (101,325 + f in float32) are rounded by as much as they respond over so short a
    way. Then a further query goes ten times as far; where that is too short too, responses show nothing.
    Answers that a program printed with few digits are rounded as well. Then the first way is so long that the
    change of the loss is distinguishable from rounding. Where none is long enough nothing is asked, and where
    responses are mostly rounding only the digits are reported.

    A gradient that is too long by orders of magnitude makes the way so short that answers stay to the bit,
    and a smooth box looks as if it were constant in pieces. Before such a verdict a query goes at least a
    ten-thousandth of the weights' length.

    A network that computes in 16 bits, as under autocast, gives the box the very same inputs over so short a
    way, or others at random. A check that finds fault there shows nothing, and a notice says so once.

    Where at most a tenth of the base's surviving rows fail, the others decide: their prediction is the
    gradient of their mean, taken again from the recorded answers. Where more rows fail, or the failed ones
    have most of the gradient, the check shows nothing.

    Where no fault is found, but the loss changes by more than twice the change that g predicts, a query a
    tenth as far finds the reason. It is the curvature of the way, as on chaotic ones, or a part of the boxes'
    derivative that tangents leave out, as where a box keeps something between its calls. The query is
    repeated in later checks until the reason is known.

    Args:
        gradient: the gradient g, with all that it was taken from.
        watch: decides on faults, and knows the noise.
    """
    uphill = _Uphill(gradient.behind_first_writes(), watch.state.noise)
    check = _looked(uphill, watch)
    unlike = uphill.noise / uphill.size if watch.state.noise is None and uphill.noise is not None else None
    unmoved = {} if uphill.noise else uphill.unmoved
    return replace(
        check,
        noise=uphill.noise,
        unlike=unlike,
        rows=uphill.rows,
        queries=uphill.queries,
        unmoved=unmoved,
    )


def _looked(uphill: _Uphill, watch: TrustWatch) -> Check:
    """Look by one query that goes far enough to show something, and by others that confirm a fault."""
    change, reason = uphill.shortest()
    if change is None:
        return Check(reason=reason)
    check, hidden = uphill.look(change)
    if hidden and change < uphill.most:
        check, hidden = uphill.look(uphill.most)
    unmoved = check.reason is None and (check.flat is None or is_flat(check.flat))
    if unmoved and change < uphill.farther:
        change = uphill.farther
        check, hidden = uphill.look(change)

    fault = watch.doubts(check)
    if fault and (dtype := uphill.narrow()) is not None:
        return Check(reason=SixteenBits(dtype))
    fault = fault or watch.may_be_cut(check)
    wild = uphill.noise is None and abs(check.figures.get("agreement", 0.0)) > WILD
    if (fault or wild) and uphill.noise is None and uphill.measure_noise():
        return replace(check, figures={})  # they were chosen to be seen without noise
    if uphill.noise or hidden:
        return check
    if not fault:
        return replace(check, short=uphill.short(check, change)) if watch.may_be_short(check) else check
    nearer, hidden = uphill.look(change / NEARER)
    if hidden or not nearer.shows:
        return check
    if (watch.doubts(nearer) or watch.may_be_cut(nearer)) and uphill.is_rough(change / NEARER):
        return replace(check, figures={})
    return replace(nearer, cut=_cut(uphill, check, nearer, change) if watch.may_be_cut(check) else None)


def _cut(uphill: _Uphill, check: Check, nearer: Check, change: float) -> float | None:
    """Return how many times its length the gradient lacks, and ask downhill where it lacks some."""
    balance = nearer.figures.get("balance")
    if missing(check.figures.get("balance"), balance) is None:
        return None
    back, _ = uphill.look(-change / NEARER)
    return of_slope(balance, back.figures.get("balance"))


class _Uphill:
    """The queries of a check, with the weights moved along the gradient; see `checked`.

    Args:
        gradient: the gradient that a step has taken.
        noise: the noise of the mean loss, see `Check.noise`; None where it is not known.

    Attributes:
        noise: the argument `noise`, or the noise measured since.
        slope: the length of the gradient.
        size: the size of the rows' losses, their mean.
        most: the largest change of the mean loss that a query is made for where rounding hides responses.
        farther: the change of the mean loss along a ten-thousandth of the weights' length.
        rows: how many rows the boxes were asked for so far.
        queries: how many queries were made.
        digits: the fewest significant digits of a box's answers; None where all have those of their dtype.
        unmoved: numbers that the first query has not moved, see `unmoved_by`.
    """

    def __init__(self, gradient: StepGradient, noise: float | None) -> None:
        window = gradient.window
        self._step_gradient, self.noise = gradient, noise
        self._dither = Repeated(window.calls)
        self._gradient = _flat(gradient.gradients)
        self.slope = float(self._gradient.norm())
        self.size = float(window.losses[torch.isfinite(window.losses)].double().abs().mean())
        self.most = FARTHEST * self.size
        self.farther = NEAREST * float(gradient.step.parameters.flat().norm()) * self.slope
        self.rows = self.queries = 0
        self.unmoved: dict[int, tuple[int, ...]] = {}
        self._looked: list[Tensor] = []  # the changes of the rows' losses, by query
        self._digits = digits_of(gradient.boxes, window)
        self.digits = min(self._digits.values(), default=None)

    def shortest(self) -> tuple[float | None, FewDigits | None]:
        """The smallest change of the mean loss that shows something, and else why there is none."""
        if not self.slope or not self.size:
            return None, None
        change = max(PREDICTED * self.size, BEYOND_NOISE * (self.noise or 0.0))
        if change > self.most:
            return None, None
        if self.digits is None:
            return change, None
        change = max(change, self.rounding() / COARSE)
        return (None, FewDigits(self.digits)) if change > self.most else (change, None)

    def look(self, predicted: float) -> tuple[Check, bool]:
        """A query so far uphill, or downhill, that the gradient predicts this change of the mean loss.

        Returns:
            What it shows, and whether rounding hides the responses.
        """
        gradient, window = self._step_gradient, self._step_gradient.window
        change, recorder = self._changes(predicted / self.slope)
        self._looked.append(change.double())
        measurements = responses_of(gradient, recorder)
        self.unmoved = self.unmoved or unmoved_by(gradient, measurements)
        predictions = predicted_of(gradient, measurements)
        rounding = rounding_of(gradient, self._digits)[: len(measurements)]
        response_error, coarse = errors_of_responses(gradient.pairs, measurements, predictions, rounding)
        hidden = coarse > COARSE
        alive, counting = torch.isfinite(window.losses), torch.isfinite(change)
        failure_share = 1.0 - float(counting.sum()) / float(alive.sum())
        listeners = [_Listening(at) for at in gradient.at_calls]
        many = failure_share > FEW
        expectation = math.nan if many else self._expected(predicted, counting, failure_share, listeners)
        # where the rows that are left hardly change along the gradient, their share in it was small
        if not expectation / predicted >= 0.5:
            return Check(reason=FailedRows(failure_share)), hidden
        if hidden and self.digits is not None:
            return Check(reason=FewDigits(self.digits)), hidden
        flat = flat_share(measurements)
        if is_flat(flat):  # no figure says anything of the gradient
            return Check(flat=flat), hidden
        errors = _errors(measurements, predictions, listeners)
        figures = Query(change, counting, expectation, errors, response_error).figures()
        if self.noise or hidden:  # the way is long enough for the change of the mean loss alone
            figures = {"agreement": figures["agreement"]}
        return Check(figures, flat=flat), hidden

    def _expected(
        self, predicted: float, counting: Tensor, failure_share: float, listeners: Sequence[Linearised]
    ) -> float:
        """Return the change of the mean loss that the gradient predicts over the rows that did not fail.

        Args:
            predicted: the predicted change over all rows.
            counting: the rows that did not fail, `(rows,)` bool.
            failure_share: the share of failed rows.
            listeners: for each call, the listener for the gradient that arrives there.
        """
        of_answered = self._again(listeners, counting).gradients
        if not failure_share:
            return predicted
        return predicted / self.slope**2 * float(_flat(of_answered) @ self._gradient)

    def rounding(self) -> float:
        """The standard deviation that rounding gives a change of the mean loss; this takes no query."""
        gradient = self._step_gradient
        listeners = [_Listening(at) for at in gradient.at_calls]
        self._again(listeners, torch.isfinite(gradient.window.losses))
        return _of_loss(rounding_of(gradient, self._digits), listeners)

    def narrow(self) -> str | None:
        """The dtype of numbers of 16 bits that depend on the weights; None for none. Takes no query."""
        gradient, monitor = self._step_gradient, Narrow()
        with uncompiled(), monitor:
            self._again(gradient.at_calls, torch.isfinite(gradient.window.losses))
        return monitor.dtype

    def measure_noise(self) -> float:
        """The standard deviation of the change of the mean loss, by a query that moves nothing."""
        self.noise = _noise_of(self._changes(0.0)[0].double())
        return self.noise

    def is_rough(self, predicted: float) -> bool:
        """True if the last query, a tenth as far as the one before, changed the rows' losses as much.

        That is noise that no query of the same weights shows, since the box knows those rows, or the numbers
        themselves draw it. The noise of the mean loss is then what it changed by. A query that moves weights
        a ten-thousandth of their length decides where both went farther: a saturated loss changes as little.

        Args:
            predicted: the change of the mean loss that the gradient predicted for the last query.
        """
        if not self._changed_as_much():
            return False
        if predicted > NEARER * self.farther:
            self.look(self.farther)
            if not self._changed_as_much():
                return False
        self.noise = _noise_of(self._looked[-1])
        return True

    def _changed_as_much(self) -> bool:
        """True if the last query changed the usual row's loss by half as much as the one before, or more."""
        far, near = self._looked[-2:]
        both = torch.isfinite(far) & torch.isfinite(near)
        # of the usual row: where one alone jumps the others decide, and where none changes nothing is noisy
        usual_far, usual_near = (float(change[both].abs().median()) for change in (far, near))
        return usual_near > 0 and usual_near >= ROUGH * usual_far

    def short(self, check: Check, predicted: float) -> float | None:
        """Return how many times its length the gradient lacks as far as tangents know, see `Check.short`.

        Args:
            check: the result of a query.
            predicted: the change of the mean loss that the gradient predicted for that query.
        """
        if self.noise is None and bool(self._changes(0.0)[0].nan_to_num().any()):
            return None  # noise, of which nothing stays
        nearer, hidden = self.look(predicted / NEARER)
        if hidden or not nearer.shows or self.is_rough(predicted / NEARER):
            return None
        return max(missing(check.figures["agreement"], nearer.figures["agreement"]) or 0.0, 0.0)

    def _again(self, at_calls: Sequence[Linearised], counting: Tensor) -> WayBack:
        """Run the backward pass once more, from the base's beginning; no box runs.

        Args:
            at_calls: the substitutes for the boxes.
            counting: the rows whose mean loss is differentiated, `(rows,)` bool.
        """
        gradient = self._step_gradient
        snapshot = Snapshot(gradient.step.network)
        gradient.start.restore()
        try:
            return evaluate_again(gradient.step, gradient.boxes, gradient.window, at_calls, counting)
        finally:
            snapshot.restore()

    def _changes(self, length: float) -> tuple[Tensor, Recorder]:
        """The changes of the rows' losses so far uphill, and a record of the boxes' calls."""
        gradient, step = self._step_gradient, self._step_gradient.step
        recorder, snapshot = Recorder(gradient.boxes, self._dither), Snapshot(step.network)
        move = Directions((length / self.slope * self._gradient).to(step.parameters.dtype)[None])
        gradient.start.restore()
        try:
            with recorder.recording():
                losses = loop_losses(step, move, Snapshot(step.network))[0]
                return losses - gradient.window.losses, recorder
        finally:
            snapshot.restore()
            self.rows, self.queries = self.rows + recorder.rows, self.queries + 1


@dataclass(frozen=True)
class Query:
    """The measurements of a query along the gradient, and their predictions.

    Attributes:
        change: the change of each row's loss, `(rows,)`.
        counting: the rows that failed neither here nor in the base, `(rows,)` bool.
        expectation: the change of their mean loss that the gradient predicts.
        errors: the changes of that mean by the errors of J d, see `_errors`.
        response_error: the relative error of J d as a prediction of the boxes' responses; None where nothing
            responded.
    """

    change: Tensor
    counting: Tensor
    expectation: float
    errors: Sequence[Tensor] | None
    response_error: float | None

    def figures(self) -> dict[str, float]:
        """All figures that are known, see `Check.figures`: the place to measure a new one."""
        agreement = float(self.change[self.counting].double().mean()) / self.expectation
        balance = None
        if self.errors is not None:
            balance = agreement - sum(float(error.sum()) for error in self.errors) / self.expectation
        figures = {
            "agreement": agreement,
            "missed": self.response_error,
            "agreement_of_rows": _of_rows(self.errors, self.change, self.counting),
            "balance": balance,
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


class _Listening(Linearised):
    """Keeps the gradient that arrives at the outputs of a call, and answers as a tangent does there.

    Args:
        at: the tangent at these rows.

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


def _noise_of(change: Tensor) -> float:
    """The standard deviation of the mean loss, if rows change by chance alone."""
    change = change[torch.isfinite(change)]
    return float(change.square().sum().sqrt()) / max(len(change), 1)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.reshape(-1).to("cpu", torch.float64) for gradient in gradients])


def _of_loss(rounding: Sequence[Tensor], listeners: Sequence[_Listening]) -> float:
    """The standard deviation of the mean loss's change by rounding of the answers."""
    total = 0.0
    for at, units in zip(listeners, rounding, strict=False):
        if at.arrived is not None:
            total += float((at.arrived.double() * units).square().sum())
    return math.sqrt(total)


def _errors(
    responses: Sequence[Response],
    predictions: Sequence[Tensor],
    listeners: Sequence[_Listening],
) -> list[Tensor] | None:
    """Return the mean loss's change by the errors of J d, by call and row, `(rows,)`; None if not known.

    Args:
        responses: the responses of the check's calls.
        predictions: J d in them.
        listeners: for each call, the listener that received the gradient of the mean loss.
    """
    if not responses:
        return None
    errors = []
    for at, measurement, answer in zip(listeners, responses, predictions, strict=True):
        if at.arrived is not None:
            errors.append((at.arrived.double() * (measurement.change - answer).double()).sum(dim=1))
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
