"""The gain of a dithered input: what an answer changes by with it, by regression of answers on the dither.

A dither is drawn beside everything else that goes into a box. So the regression of what a model of values
misses on the dither is an unbiased estimate of the mean derivative by the dithered input, however wrong the
model is about all else (an instrumental variable; Ljung, System Identification, 1999, section 7.6). A model
that is fitted to values learns that derivative last, for a dither is small beside what the state does.

`Excited` is a tangent with such gains: they stand in for its derivative by the dithered inputs as long as
they predict the responses to new dithers better than it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zo.tangents.excitation.identified import grid_of
from zo.tangents.record.pairs import CallPairs, reciprocal, sizes
from zo.tangents.tangent import Linearised, Tangent

# decision 136, all of these:
NEAR = {1: 8, 2: 3, 3: 1}  # cells from a dithered one whose answers are regressed, by the grid's axes
MOST, MOST_NEAR = 64, 400  # numbers that an output is regressed on; the same of a cell on a grid
FORGETTING = 0.99  # of what steps have shown, with each further one
FADING = 0.9  # the same of how well responses were predicted
NUMBERS = 2**22  # of columns of a step that are regressed on
CLEAR = (
    10.0  # squares of deviations, above those of the largest of as many numbers by chance: a gain is known
)
BY_CHANCE = 2.0  # deviations of chance: a model must predict better by more
WORST = 1e12  # an error that is not finite counts as this


class DitherResponse(NamedTuple):
    """What a call has shown of its dither.

    Attributes:
        dither: `(rows, size_in)`, zero for numbers that were not dithered.
        missed: `(rows, size_out)`, the answers less those that a model predicts without the dither.
        response: `(rows, size_out)`, the response to the dither by the model.
    """

    dither: Tensor
    missed: Tensor
    response: Tensor

    def finite(self) -> DitherResponse:
        """The rows of which it is known what was missed."""
        rows = self.missed.isfinite().all(dim=1)
        return self if bool(rows.all()) else DitherResponse(*(part[rows] for part in self))


@dataclass(frozen=True)
class _GainForm:
    """How the gain of a box's dithered inputs is written.

    Attributes:
        numbers: which of a row's differentiable inputs are dithered, `(n,)`.
        names: of the dithered inputs.
        space: the axes of the grid that all of them are on; empty for none.
        wraps: for each axis whether its ends meet.
    """

    numbers: Tensor
    names: tuple[str, ...]
    space: tuple[int, ...]
    wraps: tuple[bool, ...]

    @classmethod
    def of(cls, rows: CallPairs, dither: Tensor) -> _GainForm | None:
        """That of a call; None where numbers are too many, and on no grid."""
        parts = [part.any(dim=0) for part in dither.split(sizes(rows.inputs), dim=1)]
        dithers = [spec for spec, part in zip(rows.inputs, parts, strict=True) if bool(part.any())]
        space, wraps = grid_of([*dithers, *rows.outputs])
        if space:  # all cells of what is dithered in some
            parts = [torch.full_like(part, bool(part.any())) for part in parts]
        names = tuple(spec.name for spec in dithers)
        form = cls(torch.cat(parts).nonzero().flatten(), names, space, wraps)
        return form if 0 < form.size <= (MOST_NEAR if space else MOST) else None

    @property
    def size(self) -> int:
        """Numbers of the kernel for each output, or for each channel of a grid."""
        around = (2 * NEAR[len(self.space)] + 1) ** len(self.space) if self.space else 1
        return around * len(self.numbers) // math.prod(self.space)

    @property
    def key(self) -> tuple[Any, ...]:
        """What must be the same for sums to be added up."""
        return self.names, self.space, () if self.space else tuple(self.numbers.tolist())

    def columns(self, dither: Tensor) -> Tensor:
        """What is multiplied by the kernel: `(rows, cells, n)`; of no grid there is one cell."""
        if not self.space:
            return dither[:, None, self.numbers]
        field, axes = self._padded(dither), len(self.space)
        for axis in range(2, 2 + axes):
            field = field.unfold(axis, 2 * NEAR[axes] + 1, 1)
        field = field.movedim(1, 1 + axes)  # channels, beside the places around a cell
        return field.flatten(1 + axes).flatten(1, axes)

    def answered(self, dither: Tensor, kernel: Tensor) -> Tensor:
        """The product of columns and kernel, `(rows, size_out)`.

        Args:
            dither: `(rows, size_in)`.
            kernel: `(channels, n)`.
        """
        if not self.space:
            return dither[:, self.numbers] @ kernel.T
        edges = [2 * NEAR[len(self.space)] + 1] * len(self.space)
        convolution = (F.conv1d, F.conv2d, F.conv3d)[len(self.space) - 1]
        return convolution(self._padded(dither), kernel.view(len(kernel), -1, *edges)).flatten(1)

    def cells(self, outputs: Tensor) -> Tensor:
        """Answers by cell: `(rows, size_out)` to `(rows, cells, channels)`."""
        if not self.space:
            return outputs[:, None]
        return self._channels(outputs).flatten(2).transpose(1, 2)

    def _padded(self, dither: Tensor) -> Tensor:
        """The dithered inputs with what is around them: `(rows, channels, *larger)`."""
        field, near = self._channels(dither[:, self.numbers]), NEAR[len(self.space)]
        for axis, (length, wraps) in enumerate(zip(self.space, self.wraps, strict=True), start=2):
            cells = torch.arange(-near, length + near, device=field.device)
            field = field.index_select(axis, cells % length)
            if not wraps:
                inside = (cells >= 0) & (cells < length)
                field = field * inside.view(-1, *[1] * (field.ndim - axis - 1))
        return field

    def _channels(self, flat: Tensor) -> Tensor:
        """`(rows, size)` as `(rows, channels, *space)`, the arrays one after another."""
        return flat.view(len(flat), -1, *self.space)


class _LeastSquares(NamedTuple):
    """The sums of least squares, of all answers together; weights are one over what a step's model missed.

    Attributes:
        moments: of the columns, `(n, n)`.
        products: of answers and columns, `(channels, n)`.
        missed: of squares of the answers, `(channels,)`.
        count: of the answers, without weights.
        unit: of each channel, what the first step missed, `(channels,)`.
    """

    moments: Tensor
    products: Tensor
    missed: Tensor
    count: Tensor
    unit: Tensor

    @classmethod
    def of(cls, columns: Tensor, answers: Tensor, unit: Tensor | None) -> _LeastSquares:
        """Those of one step: `(answers, n)` and `(answers, channels)`."""
        squares = answers.square().mean(dim=0)
        unit = squares.sqrt() if unit is None else unit
        weight = reciprocal((squares * reciprocal(unit.square())).mean())
        moments, products = columns.T @ columns, answers.T @ columns
        count = squares.new_tensor(len(answers))
        return cls(weight * moments, weight * products, weight * count * squares, count, unit)

    def joined(self, other: _LeastSquares) -> _LeastSquares:
        """These, a step older, and those of another step."""
        return _LeastSquares(
            FORGETTING * self.moments + other.moments,
            FORGETTING * self.products + other.products,
            FORGETTING * self.missed + other.missed,
            FORGETTING * self.count + other.count,
            self.unit,
        )

    def solved(self) -> tuple[Tensor, Tensor]:
        """The solution, and what chance makes of the square of each of its numbers: `(channels, n)` each."""
        size = self.moments.diagonal().mean()
        ridge = 1e-9 * size + (size == 0)
        inverse = torch.linalg.inv(self.moments + ridge * torch.eye(len(self.moments)).to(self.moments))
        chance = (self.missed * reciprocal(self.count))[:, None] * inverse.diagonal()
        return self.products @ inverse, chance


class Gain:
    """The gain by least squares on what steps have shown, the last ones counting most; see the module.

    A step counts by how little its model has missed. What chance makes of a number is taken off.

    Attributes:
        form: how it is written; None before a dither was shown, or where none can be.
    """

    def __init__(self) -> None:
        self.form: _GainForm | None = None
        self._sums: _LeastSquares | None = None
        self._kernel: Tensor | None = None  # `(channels, n)`
        self._solution: Tensor | None = None  # before what chance makes of it is taken off,
        self._chance: Tensor | None = None  # of the square of each number

    def see(self, form: _GainForm | None, shown: Sequence[DitherResponse]) -> None:
        """Take in what the calls of a step have shown."""
        if form is None or self.form is None or form.key != self.form.key:
            self.form, self._sums = form, None
            self._solve()
        if form is None:
            return
        dither, missed = (torch.cat(parts) for parts in list(zip(*shown, strict=True))[:2])
        some = slice(0, max(1, NUMBERS // max(1, form.size * missed.shape[1])))  # of rows
        columns = form.columns(dither[some]).double().flatten(0, 1)
        answers = form.cells(missed[some]).double().flatten(0, 1)
        before = (
            None if self._sums is None else _LeastSquares(*(part.to(columns.device) for part in self._sums))
        )
        sums = _LeastSquares.of(columns, answers, None if before is None else before.unit)
        self._sums = sums if before is None else before.joined(sums)
        self._solve()

    def push(self, dither: Tensor) -> Tensor:
        """The response to changes of the dithered inputs, `(rows, size_in)` to `(rows, size_out)`."""
        assert self.form is not None and self._kernel is not None
        return self.form.answered(dither, self._kernel.to(dither))

    def squares(self, dither: Tensor) -> tuple[Tensor, Tensor] | None:
        """The square of the response as least squares have it, and what chance makes of it in the mean.

        Returns:
            `(rows, size_out)` each; None before there is a gain.
        """
        if self.form is None or self._solution is None or self._chance is None:
            return None
        response = self.form.answered(dither, self._solution.to(dither))
        return response.square(), self.form.answered(dither.square(), self._chance.to(dither))

    @property
    def on_grid(self) -> bool:
        """Whether it is one kernel around all cells of a grid."""
        return self.form is not None and bool(self.form.space)

    @property
    def known(self) -> bool:
        """Whether a number of it is so large that chance alone hardly makes the largest of as many."""
        if self._solution is None or self._chance is None:
            return False
        largest = float((self._solution.square() * reciprocal(self._chance)).max())
        return largest > 2 * math.log(self._solution.numel()) + CLEAR

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {
            "form": None if self.form is None else vars(self.form),
            "sums": None if self._sums is None else self._sums._asdict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.form = None if state["form"] is None else _GainForm(**state["form"])
        self._sums = None if state["sums"] is None else _LeastSquares(**state["sums"])
        self._solve()

    def _solve(self) -> None:
        self._kernel = self._solution = self._chance = None
        if self._sums is not None:
            self._solution, self._chance = self._sums.solved()
            share = 1.0 - self._chance * reciprocal(self._solution.square())
            self._kernel = self._solution * share.clamp_min(0.0)


class Excited(Tangent):
    """A tangent with the gains of inputs that are dithered, where these know more of them than it does.

    Args:
        prior: the tangent.

    Attributes:
        prior: as given.
        gain: the gain.
    """

    def __init__(self, prior: Tangent) -> None:
        self.prior, self.gain = prior, Gain()
        self.learns_from_values, self.learns = prior.learns_from_values, prior.learns
        # squares of errors of responses, by the tangent, by the gain, and of how far these two are apart,
        self._errors = [0.0, 0.0, 0.0]  # in units of what the model misses; the last steps counting most

    @property
    def in_use(self) -> bool:
        """Whether the gain stands in for the tangent's derivative by dithered inputs.

        It does once it is known, unless the tangent predicts the responses better by more than chance.
        """
        by_tangent, by_gain, apart = self._errors
        return self.gain.known and by_gain - by_tangent < BY_CHANCE * 2 * math.sqrt(apart)

    def at(self, rows: CallPairs) -> Linearised:
        """The tangent's, with the gain where that is in use; probes show the derivative themselves."""
        at = self.prior.at(rows)
        return _WithGain(at, self.gain) if self.in_use and not len(rows.d) else at

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """`at`, for several calls."""
        each = self.prior.at_each(calls)
        in_use = self.in_use
        return [_WithGain(at, self.gain) if in_use and not len(at.rows.d) else at for at in each]

    def forget(self) -> None:
        """No input is dithered any more."""
        self.gain, self._errors = Gain(), [0.0, 0.0, 0.0]

    def saw(self, rows: CallPairs, shown: Sequence[DitherResponse]) -> None:
        """Take in what the calls of a step have shown of their dither.

        Args:
            rows: one of the calls.
            shown: what each has shown, of rows that did not fail, by the tangent as it was before the step;
                rows for which it has no finite value show nothing.
        """
        shown = [part.finite() for part in shown]
        if not any(len(part.dither) for part in shown):
            return
        form = _GainForm.of(rows, torch.cat([part.dither for part in shown]))
        if form is not None and self.gain.form is not None and form.key == self.gain.form.key:
            self._errors = [FADING * error for error in self._errors]
            for part in shown:
                short = reciprocal(part.missed.double().square().mean(dim=0))
                by_gain = self.gain.push(part.dither)
                apart = part.missed - part.response, part.missed - by_gain, part.response - by_gain
                for place, difference in enumerate(apart):
                    error = float((difference.double().square() * short).sum())
                    self._errors[place] += error if math.isfinite(error) else WORST
        else:
            self._errors = [0.0, 0.0, 0.0]
        self.gain.see(form, shown)

    def state_dict(self) -> dict[str, Any]:
        """Of the gain alone: the tangent has its own."""
        return {"gain": self.gain.state_dict(), "errors": list(self._errors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.gain.load_state_dict(state["gain"])
        self._errors = list(state["errors"])


class _WithGain(Linearised):
    """What a tangent says at some rows, and a gain of changes of the dithered inputs.

    Args:
        at: what the tangent says.
        gain: the gain.
    """

    def __init__(self, at: Linearised, gain: Gain) -> None:
        super().__init__(at.rows)
        self._at, self._gain = at, gain

    @property
    def values(self) -> Tensor | None:
        """The tangent's."""
        return self._at.values

    def push(self, d: Tensor) -> Tensor:
        """The tangent's J d of the other inputs, and the response to a change of the dithered ones."""
        response = torch.stack([self._gain.push(part) for part in d]) if len(d) else 0.0
        return self._at.push(self._others(d)) + response

    def pull(self, v: Tensor) -> Tensor:
        """The adjoint of `push`."""
        with torch.enable_grad():
            d = torch.zeros_like(self.rows.z, requires_grad=True)
            (by_gain,) = torch.autograd.grad(self._gain.push(d), d, v.detach())
        return self._others(self._at.pull(v)) + by_gain

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """The tangent's, where the dithered inputs stay, and the response to a change of these."""
        numbers = self._numbers
        stays = z.clone()
        stays[:, numbers] = self.rows.z[:, numbers]
        return self._at.to(stays, others) + self._gain.push(z - self.rows.z)

    @property
    def _numbers(self) -> Tensor:
        assert self._gain.form is not None
        return self._gain.form.numbers

    def _others(self, d: Tensor) -> Tensor:
        """Zero for the dithered inputs."""
        d = d.clone()
        d[..., self._numbers] = 0.0
        return d
