"""`KernelTangent`: for boxes of few numbers, the mean of a Gaussian process, fitted to values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blackbox.checks import check_count
from zo.tangents.models.at_rows import ModelAt, Together, at_calls
from zo.tangents.models.candidates import Candidate
from zo.tangents.models.gaussian_process import (
    ROWS,
    Choice,
    Process,
    along,
    best_factor,
    least_unexplained,
    left_out,
    likely_lengths,
    noise_of,
    one_length,
    principal_axes,
)
from zo.tangents.models.prior import Below, said
from zo.tangents.models.row_window import spread_places
from zo.tangents.models.structure import Specs
from zo.tangents.models.values import ValueTangent
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.tangent import Linearised

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # on the likeliest lengths; decision 148
JUDGED = 400  # rows by whose leave-one-out errors lengths and noise are chosen
OWN, CLEARLY = 32, 2.0  # outputs that may have their own, and times the mean square error that these save
APART = 0.05  # of an input's variance: with less that others do not explain, no lengths; decisions 148, 213
UNCHANGED = 1e-3  # spread of an output, in units of one, below which it is rounding
CURVATURE = 10.0  # variance of the quadratic part, over the kernel's own; decision 235
GROWN = 1.5  # times as many rows: lengths and noises are chosen again
MOST_NUMBERS = 32  # of all inputs, without a grid or a mesh, for which there is a kernel; decision 77
LARGEST = 5_000  # numbers of outputs for which there is a kernel; decision 77
NEWER = 20  # it is fitted again where one row in so many is new; decision 77


class KernelTangent(ValueTangent):
    """The derivative of a Gaussian process's mean, fitted to the last rows in closed form.

    In units of mean zero and spread one, y = z + sum over rows j of k(x, x_j) a_j, with k(x, x') = exp(-sum
    over inputs i of (x_i - x'_i)^2 / 2 l_i^2) + 10 (1 + x . x' / n) for n numbers of inputs: a squared
    exponential beside a linear trend (Rasmussen and Williams, 2006). Of more than 400 rows a quadratic trend,
    10 (x . x' / n)^2, comes to it where it predicts rows that are left out better. Where so many rows have
    inputs that explain each other, x are their principal axes, see `principal_axes`. The lengths l_i are the
    likeliest, times a factor that has, with the noise, the smallest leave-one-out error. Of more than 400
    rows the noise is then the largest whose error is within a standard error of the least. One length serves
    all inputs where its error is smaller, or where inputs of fewer rows have explained each other from the
    first; lengths that were chosen before that are kept. The outputs share the lengths. Among at most 32
    outputs, one whose mean square error is less than half with lengths of its own has these. Where a box
    takes few numbers this learns more from few rows than a network does. Each number has its own unit. It
    needs no steps of learning, and nothing is drawn.

    Memory: some 3 centres^2 numbers of 8 bytes in a fit, centres x (size_in + size_out) after it, and window
    x (size_in + size_out). A fit, when one row in twenty is new: centres^3 / 3 operations. A call's VJP: rows
    x centres x (size_in + size_out). Both count once more for each output with its own lengths. Lengths are
    searched again when there are half as many rows more: some 50 ms of one core, and 20 for each output; of
    1,000 rows 300 ms, and 400 ms for each output with its own. The box runs no rows of its own for it.

    Args:
        centres: rows to which it is fitted, evenly taken from the window.
        window: rows kept, the oldest going.
        prior: a differentiable model under it, see `ValueTangent`.

    Raises:
        ConfigurationError: a value out of its range.
    """

    process: type[Any] = Process  # of which each fit consists

    def __init__(self, centres: int = 1000, *, window: int = 4000, prior: Below | None = None) -> None:
        check_count(type(self).__name__, "centres", centres)
        self.centres = centres
        super().__init__(window, output_map=False, prior=prior)

    def _forget(self, window: int) -> None:
        """Know nothing."""
        super()._forget(window)
        self._last_choice = self._last_fit = 0  # rows ever seen, at the last choice of lengths and at the fit
        self._units: tuple[Tensor, ...] = ()  # of that fit: mean and scale of x, mean and scale of changes
        self._centres = torch.empty(0)  # of that fit, `(centres, size)` in these units
        self._fit: list[Any] = []  # one for the outputs that share lengths, and one for each other
        self._means: list[Any] = []  # of these, see `Process.means`
        self._order = torch.empty(0)  # of the outputs, among those of the means

    @property
    def knows(self) -> bool:
        """True if it has learned anything."""
        return bool(self._fit)

    @torch.no_grad()
    def learn_from_window(self, steps: int | None) -> None:
        """Fit again where enough rows are new; choose lengths again where half as many more are there."""
        self._lessons += 1
        count = self._window.seen
        if self._fit and NEWER * (count - self._last_fit) < min(count, self._window.most):
            return
        z, others, y = (column.double() for column in self._window.spread(self.centres))
        inputs, context, _, changes = self._moments
        of_inputs = (inputs, context) if others.shape[1] else (inputs,)
        self._units = tuple(
            numbers.to(z)
            for numbers in (
                torch.cat([moments.mean().to(z) for moments in of_inputs]),
                torch.cat([moments.scale().to(z) for moments in of_inputs]),
                changes.mean(),
                changes.scale(),
            )
        )
        x, target = self._inputs(z, others), (y - self.carried(z) - self._units[2]) / self._units[3]
        again = count >= GROWN * self._last_choice
        self._fit, chose = self.fitted(x, target, again)
        if chose:
            self._last_choice = count
        self._centres, self._last_fit = x, count
        self._prepare()

    def fitted(self, x: Tensor, target: Tensor, again: bool) -> tuple[list[Any], bool]:
        """The processes given rows, and whether their lengths were chosen.

        Args:
            x: inputs in units of spread one, `(rows, size)`.
            target: changes in such units, `(rows, size_out)`.
            again: whether lengths and noises are chosen again; else they stay as they are.
        """
        choices = [Chosen(p.outputs, p.lengths, p.noise, p.curvature, p.axes) for p in self._fit]
        has_own_lengths = any(
            choice.axes is None and bool((choice.lengths != choice.lengths[0]).any()) for choice in choices
        )
        again = again and not (has_own_lengths and least_unexplained(x) < APART)
        better = _chosen(x, target) if again else []
        return [Process.fitted(x, target, *choice) for choice in better or choices], bool(better)

    def _prepare(self) -> None:
        """Make what serves all calls until the next fit."""
        if not self._fit:
            self._means = []
            return
        self._means = self.process.means(self._fit, self._centres)
        self._order = torch.cat([means.outputs for means in self._means]).argsort()

    def _inputs(self, z: Tensor, others: Tensor) -> Tensor:
        """Inputs in units of mean zero and spread one."""
        mean, scale = self._units[:2]
        return (torch.cat([z, others], 1).double() - mean) / scale

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """Kernel and trend: `(rows, size_in)` to `(rows, size_out)`."""
        x = self._inputs(z, others)
        change = torch.cat([means.at(x) for means in self._means], 1).index_select(1, self._order)
        carried = self.carried(z)
        return carried + (self._units[2] + self._units[3] * change).to(carried.dtype)

    def known_at(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The mean at each call."""
        together = at_calls(calls, self.values)
        return [_KernelAt(rows, self, together, number) for number, rows in enumerate(calls)]

    def pulled(self, z: Tensor, others: Tensor, v: Tensor) -> Tensor:
        """J^T v of each row, without the outputs: `(rows, size_out)` to `(rows, size_in)`."""
        x, size = self._inputs(z, others), z.shape[1]
        standard = v.double() * self._units[3]
        pulls = (means.pulled(x, standard[:, means.outputs]) for means in self._means)
        base = self._form.followed_back(self._stays.to(v) * v)
        return base + (sum(pulls, torch.zeros_like(x))[:, :size] / self._units[1][:size]).to(v)

    def state_dict(self) -> dict[str, Any]:
        """The fit, and the rows that the next one is made of."""
        if not self._form:
            return {"form": None}
        return self.kept() | {
            "chosen": (self._last_choice, self._last_fit),
            "units": [tensor.clone() for tensor in self._units],
            "centres": self._centres.clone(),
            "processes": [process.state() for process in self._fit],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            self._forget(self._window.rows)
            return
        self.load_kept(state)
        device = self._window.columns[0].device
        self._units = tuple(tensor.to(device, copy=True) for tensor in state["units"])
        self._last_choice, self._last_fit = state["chosen"]
        self._centres = state["centres"].to(device, copy=True)
        self._fit = [self.process.of(process, device) for process in state["processes"]]
        self._prepare()

    def __repr__(self) -> str:
        """The number of centres."""
        return f"{type(self).__name__}(centres={self.centres}{said(self.prior)})"


class _KernelAt(ModelAt):
    """The mean of the processes at the rows of a call, its adjoint written out."""

    def __init__(self, rows: CallPairs, tangent: KernelTangent, together: Together, number: int) -> None:
        super().__init__(rows, tangent.values, together, number)
        self._pulled = tangent.pulled

    def values_before_pull(self) -> Tensor:
        """The outputs, of which a pull needs nothing."""
        return self.values

    def pull(self, v: Tensor) -> Tensor:
        """The mean's J^T v."""
        return self._pulled(self.rows.z, self.others, v)


class Chosen(NamedTuple):
    """The choice for some outputs.

    Attributes:
        outputs: their places.
        lengths: the lengths of the kernel.
        noise: the variance of the noise.
        curvature: the variance of the quadratic part.
        axes: the matrix that takes inputs to the kernel's axes; None for none.
    """

    outputs: Tensor
    lengths: Tensor
    noise: float
    curvature: float
    axes: Tensor | None = None


def _chosen(x: Tensor, target: Tensor) -> list[Chosen]:
    """The choice, with a quadratic part or along principal axes, that predicts rows best that are left out.

    Args:
        x: inputs in units of spread one, `(rows, size)`; of equal rows, which tell each other, one counts.
        target: changes in such units, `(rows, size_out)`.

    Returns:
        One choice for each process; none where no error is finite.
    """
    places = _once(x)
    x, target = x[places], target[places]
    few = spread_places(len(x), JUDGED).to(x.device)
    if len(few) == len(x):  # so few say little of a curvature, or of axes: decisions 235 and 245
        return _of_curvature(x[few], target[few], 0.0)
    parts = [(None, 0.0), (None, CURVATURE)]
    if len(few) <= x.shape[1] + 1:  # so many inputs have no axes that rows show, nor a curvature
        return _of_curvature(x[few], target[few], 0.0)
    if least_unexplained(x[few]) < APART:
        axes = principal_axes(x[few])
        parts = [(axes, 0.0), (axes, CURVATURE)]
    best: list[Chosen] = []
    least = math.inf
    for axes, curvature in parts:
        rows = along(axes, x)
        choices = _of_curvature(rows[few], target[few], curvature)
        missed = _missed(rows, target, choices) if choices else math.inf
        if missed < least:
            best, least = [choice._replace(axes=axes) for choice in choices], missed
    return [
        choice._replace(
            noise=noise_of(along(choice.axes, x), target[:, choice.outputs], choice.lengths, choice.curvature)
        )
        for choice in best
    ]


def _missed(x: Tensor, target: Tensor, processes: Sequence[Chosen]) -> float:
    """The mean squared error of rows that are left out, summed over outputs."""
    return sum(
        float(left_out(x, target[:, c.outputs], c.lengths, c.noise, c.curvature).mean(0).sum())
        for c in processes
    )


def _of_curvature(x: Tensor, target: Tensor, curvature: float) -> list[Chosen]:
    """Outputs, lengths and noise of each process, given the quadratic part; none where no error is finite."""
    shared = one_length(x, target, curvature)
    if shared is None:
        return []
    begin, changing = shared, target.std(0, correction=0) > UNCHANGED
    if least_unexplained(x) < APART or not bool(changing.any()):
        return [
            Chosen(torch.arange(target.shape[1], device=x.device), shared.lengths, shared.noise, curvature)
        ]
    likely = best_factor(x, target, likely_lengths(x, target[:, changing], begin), FACTORS, curvature)
    if likely is not None and likely.errors.sum() < shared.errors.sum():
        shared = likely
    by_output: dict[int, Choice] = {}
    few = spread_places(len(x), ROWS).to(x.device)
    x, target = x[few], target[few]
    by_shared = best_factor(x, target, shared.lengths, (1.0,), curvature)
    several = by_shared is not None and 1 < target.shape[1] <= OWN
    for place in changing.nonzero().flatten().tolist() if several else ():
        alone = target[:, place : place + 1]
        likely = best_factor(x, alone, likely_lengths(x, alone, begin), FACTORS, curvature)
        if likely and by_shared and CLEARLY * likely.errors[0] < by_shared.errors[place]:
            by_output[place] = likely
    shared_outputs = [place for place in range(target.shape[1]) if place not in by_output]
    processes = [([place], choice) for place, choice in by_output.items()]
    processes = [(shared_outputs, shared), *processes] if shared_outputs else processes
    return [
        Chosen(torch.tensor(outputs, device=x.device), c.lengths, c.noise, curvature)
        for outputs, c in processes
    ]


def _once(x: Tensor) -> Tensor:
    """The places of rows, each of several equal ones once, in their order."""
    _, kinds = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full_like(kinds, len(x)).scatter_reduce(0, kinds, torch.arange(len(x)).to(kinds), "amin")
    return first[first < len(x)].sort().values


def _does_not_fit(specs: Specs) -> str | None:
    """Why a box gets no kernel by default: many inputs need many rows, many outputs much time."""
    numbers = sum(sizes(tuple(spec for spec in specs.inputs if spec.modelled)))
    outputs = sum(sizes(tuple(spec for spec in specs.outputs if spec.learned)))
    if specs.structure.kind == "table" and numbers <= MOST_NUMBERS and outputs <= LARGEST:
        return None
    return (
        f"a kernel wants a table of at most {MOST_NUMBERS} numbers of inputs and {LARGEST:,} of outputs, not "
        f"a {specs.structure.kind} of {numbers} and {outputs:,}"
    )


CANDIDATE = Candidate("kernel", _does_not_fit, lambda box, seed: KernelTangent())
