"""The gain of a dithered input: the change of an answer with it, by regression of answers on the dither.

A dither is drawn independently of all other inputs of a box. So the model's error is regressed on the dither,
and on its products with the box's inputs (`gain_form.py`). This is an unbiased estimate of the derivative by
the dithered input, however wrong the model is about all else: the dither is an instrumental variable (Ljung,
System Identification, 1999, section 7.6). A model that is fitted to values learns that derivative last, since
a dither is small beside the effect of the state.

`Excited` is a tangent with such gains: they stand in for its derivative by the dithered inputs as long as
they predict the responses to new dithers better than it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zo.tangents.evidence.unmoved import Masked
from zo.tangents.excitation.gain_form import GainForm, given
from zo.tangents.record.before import Lags
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.tangent import Linearised, Tangent

# decision 136, all of these:
FORGETTING = 0.99  # of what steps have shown, with each further one
FADING = 0.9  # the same of how well responses were predicted
NUMBERS = 2**22  # of columns of a step that are regressed on
# squares of deviations, above those of the largest of as many numbers by chance: a gain is known
CLEAR = 10.0
BEYOND = 2.0  # deviations: what is more is not chance; decisions 149, 150


class DitherResponse(NamedTuple):
    """The response of a call to its dither.

    Attributes:
        inputs: the box's inputs beside the dither, see `given`.
        dither: `(rows, size_in)`, zero for numbers that were not dithered.
        missed: `(rows, size_out)`, the answers less those that a model predicts without the dither.
        response: `(rows, size_out)`, the response to the dither by the model.
    """

    inputs: Tensor
    dither: Tensor
    missed: Tensor
    response: Tensor

    def finite(self) -> DitherResponse:
        """The rows with finite `missed`."""
        rows = self.missed.isfinite().all(dim=1)
        return self if bool(rows.all()) else DitherResponse(*(part[rows] for part in self))


class _LeastSquares(NamedTuple):
    """The sums of least squares over all answers; a weight is the inverse of the square of a step's misses.

    Attributes:
        moments: the sums of products of columns, `(n, n)`.
        products: the sums of products of answers and columns, `(channels, n)`.
        missed: the sums of squares of the answers, `(channels,)`.
        count: the number of answers, without weights.
        unit: the root mean square that the first step missed of each channel, `(channels,)`.
    """

    moments: Tensor
    products: Tensor
    missed: Tensor
    count: Tensor
    unit: Tensor

    @classmethod
    def of(cls, columns: Tensor, answers: Tensor, unit: Tensor | None) -> _LeastSquares:
        """Return the sums of one step: `(answers, n)` and `(answers, channels)`."""
        squares = answers.square().mean(dim=0)
        unit = squares.sqrt() if unit is None else unit
        weight = reciprocal((squares * reciprocal(unit.square())).mean())
        moments, products = columns.T @ columns, answers.T @ columns
        count = squares.new_tensor(len(answers))
        return cls(weight * moments, weight * products, weight * count * squares, count, unit)

    def joined(self, other: _LeastSquares) -> _LeastSquares:
        """Add these, a step older, and those of another step."""
        return _LeastSquares(
            FORGETTING * self.moments + other.moments,
            FORGETTING * self.products + other.products,
            FORGETTING * self.missed + other.missed,
            FORGETTING * self.count + other.count,
            self.unit,
        )

    def solved(self, n: int) -> tuple[Tensor, Tensor]:
        """The solution, and what chance makes of the square of each of its numbers: `(channels, n)` each.

        Args:
            n: how many columns are taken; the numbers of the others are zero.
        """
        moments, products, none = self.moments[:n, :n], self.products[:, :n], (0, len(self.moments) - n)
        size = moments.diagonal().mean()
        ridge = 1e-9 * size + (size == 0)
        inverse = torch.linalg.inv(moments + ridge * torch.eye(n).to(moments))
        chance = (self.missed * reciprocal(self.count))[:, None] * inverse.diagonal()
        return F.pad(products @ inverse, none), F.pad(chance, none)


@dataclass(frozen=True)
class _Contest:
    """Two predictions of a model's misses side by side; the last steps count most.

    Attributes:
        one: the sum of squares of one's errors, in units of the misses, see `_errors`.
        other: the sum of squares of the other's errors.
        differences: the sum of squares of their differences.
        numbers: the count of numbers in these sums.
    """

    one: float = 0.0
    other: float = 0.0
    differences: float = 0.0
    numbers: float = 0.0

    def behind(self, errors: tuple[float, float, float], numbers: int) -> _Contest:
        """Return the contest with the errors of one more step, and the count of their numbers."""
        sums = zip(astuple(self), (*errors, numbers), strict=True)
        return _Contest(*(FADING * total + new for total, new in sums))

    @property
    def chance(self) -> float:
        """The difference that chance may make of their errors, where one of them is right.

        If that misses noise alone, of variance s^2, the difference is `differences` and a deviation of 2 s
        times its root.
        """
        square = min(self.one, self.other) / self.numbers if self.numbers else 1.0
        return BEYOND * 2 * math.sqrt(square * self.differences)


@dataclass(frozen=True, eq=False)
class Gain:
    """The gain by least squares on the steps so far, the last ones counting most; see the module.

    A step counts more if its model has missed less. Each number is shrunk by its expected noise.

    Attributes:
        form: the form of the gain.
        basis: the basis of the products' factors, as the first step had it.
        sums: the sums of least squares.
        contest: the contest of the gain without products and with them.
    """

    form: GainForm
    basis: tuple[Tensor, Tensor]
    sums: _LeastSquares
    contest: _Contest = _Contest()

    @classmethod
    def of(cls, form: GainForm, responses: Sequence[DitherResponse]) -> Gain:
        """Fit the gain to the calls of a first step."""
        basis = form.basis(torch.cat([part.inputs for part in responses]).double())
        return cls(form, basis, _LeastSquares.of(*_equations(form, basis, responses), None))

    def behind(self, responses: Sequence[DitherResponse]) -> Gain:
        """The gain with what the calls of one more step have shown."""
        columns, answers = _equations(self.form, self.basis, responses)
        earlier_sums, contest = _LeastSquares(*(part.to(columns.device) for part in self.sums)), self.contest
        whole = columns.shape[1]
        if self.form.products and earlier_sums.count >= whole:
            predicted = [
                columns @ _without_chance(*earlier_sums.solved(n)).T for n in (self.form.alone, whole)
            ]
            contest = contest.behind(_errors(answers, predicted), answers.numel())
        sums = earlier_sums.joined(_LeastSquares.of(columns, answers, earlier_sums.unit))
        return Gain(self.form, self.basis, sums, contest)

    def push(self, dither: Tensor, inputs: Tensor) -> Tensor:
        """The response to changes of the dithered inputs.

        Args:
            dither: `(rows, size_in)`, the changes.
            inputs: the box's inputs beside the dither, see `given`.

        Returns:
            `(rows, size_out)`.
        """
        return self.form.answered(dither, self.form.beside(inputs, self.basis), self._kernel.to(dither))

    def squares(self, dither: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The square of the response as least squares have it, and what chance makes of it in the mean.

        Returns:
            `(rows, size_out)` each.
        """
        factors, (solution, chance) = self.form.beside(inputs, self.basis), self._solved
        square = self.form.answered(dither, factors, solution.to(dither)).square()
        return square, self.form.answered(dither.square(), factors.square(), chance.to(dither))

    @property
    def known(self) -> bool:
        """True if a number of it is so large that chance alone hardly makes the largest of as many."""
        solution, chance = self._solved
        return float((solution.square() * reciprocal(chance)).max()) > 2 * math.log(solution.numel()) + CLEAR

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {
            "form": vars(self.form),
            "basis": list(self.basis),
            "sums": self.sums._asdict(),
            "errors": list(astuple(self.contest)),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Gain:
        """Rebuild the gain from the output of `state_dict`."""
        form, sums = GainForm(**state["form"]), _LeastSquares(**state["sums"])
        return cls(form, tuple(state["basis"]), sums, _Contest(*state["errors"]))

    @cached_property
    def _solved(self) -> tuple[Tensor, Tensor]:
        """The solution, with products where these have predicted responses better, by more than chance."""
        with_products = self.contest.other - self.contest.one < -self.contest.chance
        return self.sums.solved(self.form.alone + self.form.products if with_products else self.form.alone)

    @cached_property
    def _kernel(self) -> Tensor:
        return _without_chance(*self._solved)


def _equations(
    form: GainForm, basis: tuple[Tensor, Tensor], responses: Sequence[DitherResponse]
) -> tuple[Tensor, Tensor]:
    """Return the regression's columns, and the answers, of as many rows as there is room for."""
    inputs, dither, missed = (torch.cat(parts) for parts in list(zip(*responses, strict=True))[:3])
    kernel = form.alone + form.products
    some = slice(0, max(1, NUMBERS // max(1, kernel * missed.shape[1])))  # of rows
    columns = form.columns(dither[some].double(), form.beside(inputs[some].double(), basis))
    return columns.flatten(0, 1), form.cells(missed[some]).double().flatten(0, 1)


def _without_chance(solution: Tensor, chance: Tensor) -> Tensor:
    """Return the solution, with each number shrunk by its expected noise."""
    return solution * (1.0 - chance * reciprocal(solution.square())).clamp_min(0.0)


def _errors(
    missed: Tensor, predicted: Sequence[Tensor], scale: Tensor | None = None
) -> tuple[float, float, float]:
    """Return squares of the errors of two predictions of the misses, and of their difference.

    The unit is the square that was missed of a number, or the mean square of all numbers where that is
    larger by far: a number without anything to predict would outweigh all others. One without a scale, which
    has not varied yet, has no part. An error larger than that of predicting no response counts as that error.

    Args:
        missed: the misses, `(answers, numbers)`.
        predicted: two predictions of them, of the same shape.
        scale: the scale of each number, `(numbers,)`; None for its own misses, so that all weigh the same.
    """
    one, other = predicted
    squares = missed.double().square().mean(dim=0)
    of_scale = squares if scale is None else scale.double().square()
    short = reciprocal(squares + of_scale * (squares * reciprocal(of_scale)).mean()) * (of_scale > 0)
    most = float((squares * short).sum() * len(missed))
    errors = (
        float((difference.double().square() * short).sum())
        for difference in (missed - one, missed - other, other - one)
    )
    first, second, differences = (min(error, most) if math.isfinite(error) else most for error in errors)
    return first, second, differences


class Excited(Tangent):
    """A tangent with the gains of dithered inputs, where these predict better than the tangent.

    Args:
        prior: the tangent.

    Attributes:
        prior: the argument of that name.
        gain: the gain; None before a dither was shown, or where none can be.
        unmoved: numbers of the outputs, by their places, that checks have never moved; None before a check.
        unknown: numbers of the inputs, by their places, whose derivative is a guess and counts as zero.
    """

    def __init__(self, prior: Tangent) -> None:
        self.prior, self.learns = prior, prior.learns
        self.unmoved: tuple[int, ...] | None = None
        self.unknown: tuple[int, ...] = ()
        self.lags: Lags = ()
        self.gain: Gain | None = None
        self._contest = _Contest()  # of the responses by the tangent and by the gain

    @property
    def in_use(self) -> Gain | None:
        """The gain where it stands in for the tangent's derivative by dithered inputs.

        It does once it is known, unless the tangent predicts the responses better by more than chance.
        """
        is_known = self.gain is not None and self.gain.known
        return (
            self.gain if is_known and self._contest.other - self._contest.one < self._contest.chance else None
        )

    def at(self, rows: CallPairs) -> Linearised:
        """The tangent's, with the gain where that is in use, and without guesses."""
        return self.without_unknown(self.guess(rows))

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """`at`, for several calls."""
        return [self.without_unknown(self._with_all(at)) for at in self.prior.at_each(calls)]

    def guess(self, rows: CallPairs) -> Linearised:
        """The tangent's, with the gain where that is in use, and guesses among it."""
        return self._with_all(self.prior.at(rows))

    def without_unknown(self, at: Linearised) -> Linearised:
        """The same, with a derivative of zero where it is a guess."""
        return Masked(at, inputs=self.unknown) if self.unknown else at

    def _with_all(self, at: Linearised) -> Linearised:
        """Return the tangent with the gain, if that is in use, and without outputs that nothing moves."""
        gain = self.in_use
        at = at if gain is None else _WithGain(at, gain)
        return Masked(at, outputs=self.unmoved) if self.unmoved else at

    def saw_unmoved(self, places: Sequence[int]) -> bool:
        """Take in the outputs that a check has not moved; whether there are some that nobody knew of."""
        new = self.unmoved is None and bool(places)
        unmoved = places if self.unmoved is None else [place for place in self.unmoved if place in places]
        self.unmoved = tuple(unmoved)
        return new

    def remember(self, tangent: Tangent, lags: Lags) -> None:
        """Go on with a tangent that is shown what was before."""
        self.prior, self.lags = tangent, lags
        self.forget()

    def forget(self) -> None:
        """No input is dithered any more."""
        self.gain, self._contest = None, _Contest()

    def saw(self, rows: CallPairs, responses: Sequence[DitherResponse]) -> None:
        """Take in the responses of a step's calls to their dither.

        Args:
            rows: one of the calls.
            responses: the response of each call, without failed rows, beside the tangent as it was before
                the step; rows without a finite value of the tangent show nothing.
        """
        responses = [part.finite() for part in responses]
        if not any(len(part.dither) for part in responses):
            return
        form, gain = GainForm.of(rows, torch.cat([part.dither for part in responses])), self.gain
        if form is not None and gain is not None and form.key == gain.form.key:
            inputs, dither, missed, response = (torch.cat(parts) for parts in zip(*responses, strict=True))
            errors = _errors(missed, (response, gain.push(dither, inputs)), rows.response_scale)
            self.gain, self._contest = gain.behind(responses), self._contest.behind(errors, missed.numel())
        else:
            self.gain, self._contest = form and Gain.of(form, responses), _Contest()

    def state_dict(self) -> dict[str, Any]:
        """Save the gain alone: the tangent has a state of its own."""
        gain = None if self.gain is None else self.gain.state_dict()
        errors = list(astuple(self._contest))
        return {"gain": gain, "errors": errors, "unmoved": self.unmoved, "unknown": self.unknown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.gain = Gain.of_state(state["gain"]) if state["gain"] else None
        self._contest = _Contest(*state["errors"])
        self.unmoved = None if state["unmoved"] is None else tuple(state["unmoved"])
        self.unknown = tuple(state["unknown"])


class _WithGain(Linearised):
    """A tangent at some rows, with a gain for changes of the dithered inputs.

    Args:
        at: the tangent at these rows.
        gain: the gain.
    """

    def __init__(self, at: Linearised, gain: Gain) -> None:
        super().__init__(at.rows)
        self._at, self._gain, self._inputs = at, gain, given(at.rows)

    @property
    def values(self) -> Tensor | None:
        """The tangent's."""
        return self._at.values

    def values_before_pull(self) -> Tensor | None:
        """The tangent's."""
        return self._at.values_before_pull()

    def push(self, d: Tensor) -> Tensor:
        """The tangent's J d of the other inputs, and the response to a change of the dithered ones."""
        return self._at.push(self._others(d)) + self._gain.push(d, self._inputs)

    def pull(self, v: Tensor) -> Tensor:
        """The adjoint of `push`."""
        with torch.enable_grad():
            d = torch.zeros_like(self.rows.z, requires_grad=True)
            (by_gain,) = torch.autograd.grad(self._gain.push(d, self._inputs), d, v.detach())
        return self._others(self._at.pull(v)) + by_gain

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """The tangent's, where the dithered inputs stay, and the response to a change of these."""
        numbers, stays = self._gain.form.numbers, z.clone()
        stays[:, numbers] = self.rows.z[:, numbers]
        return self._at.to(stays, others) + self._gain.push(z - self.rows.z, self._inputs)

    def _others(self, d: Tensor) -> Tensor:
        """Zero for the dithered inputs."""
        d = d.clone()
        d[..., self._gain.form.numbers] = 0.0
        return d
