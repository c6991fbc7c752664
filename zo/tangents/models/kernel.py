"""`KernelTangent`: for boxes of few numbers, the mean of a Gaussian process, fitted to values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count
from zo.tangents.models.at_rows import ModelAt, Together, at_calls
from zo.tangents.models.values import Form, ValueTangent
from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import Linearised

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the kernel, over the usual distance of two rows
NOISES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)  # variances, over the kernel's own
TREND = 10.0  # variance of the linear part, over the kernel's own; decision 77
JUDGED = 400  # rows by whose leave-one-out errors length and noise are chosen
NEWER = 20  # it is fitted again where one row in so many is new; decision 77


class KernelTangent(ValueTangent):
    """J(z) is that of the mean of a Gaussian process, fitted to the last rows in closed form.

    In units of mean zero and spread one, y = z + sum over rows j of k(x, x_j) a_j, with k(x, x') =
    exp(-|x - x'|^2 / 2 l^2) + 10 (1 + x . x' / n) for n numbers of inputs: a squared exponential beside a
    linear trend (Rasmussen and Williams, 2006). The length l and the noise are those of the smallest
    leave-one-out error. Where a box takes few numbers this learns more from few rows than a network does.
    Each number has its own unit. It needs no probes and no steps of learning, and nothing is drawn.

    Memory: some centres x (3 centres + 2 size_out) numbers of 8 bytes, and window x (size_in + size_out). A
    fit, when one row in twenty is new: centres^3 / 3 operations. A call's VJP: rows x centres x (size_in +
    size_out). Of the box no rows beyond the step's.

    Args:
        centres: rows to which it is fitted, evenly taken from the window.
        window: rows kept, the oldest going.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(self, centres: int = 1000, *, window: int = 4000) -> None:
        check_count("KernelTangent", "centres", centres)
        self.centres = centres
        super().__init__(window, output_map=False)

    def _forget(self, window: int) -> None:
        """Know nothing."""
        super()._forget(window)
        self._length, self._noise = 1.0, NOISES[0]
        self._last_choice = self._last_fit = 0  # rows ever seen, when these were chosen and at the last fit
        self._units: tuple[Tensor, ...] = ()  # of that fit: mean and scale of x, mean and scale of changes
        self._fit: tuple[Tensor, ...] = ()  # x_j (centres, size), a_j (centres, size_out), their linear part

    @property
    def knows(self) -> bool:
        """Whether it has learned anything."""
        return bool(self._fit)

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Take them into mean and spread."""
        self._moments = self._moments or self.moments(form)
        for moments, values in zip(self._moments, (z, others, y, y - self.carried(z)), strict=True):
            moments.add(values)

    @torch.no_grad()
    def learn_from_window(self, steps: int | None) -> None:
        """Fit again where enough rows are new; length and noise are chosen again where rows have doubled."""
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
        if count >= 2 * self._last_choice:
            self._choose(x, target)
            self._last_choice = count
        kernel = torch.exp(-_squares(x, x) / (2 * self._length**2)) + _trend(x, x)
        kernel.diagonal().add_(self._noise)
        weights = torch.cholesky_solve(target, torch.linalg.cholesky(kernel))
        self._fit = x, weights.contiguous(), (TREND / x.shape[1]) * (x.T @ weights), TREND * weights.sum(0)
        self._last_fit = count

    def _choose(self, x: Tensor, target: Tensor) -> None:
        """Length and noise by leave-one-out errors, in closed form, for all noises at once."""
        places = torch.linspace(0, len(x) - 1, min(len(x), JUDGED)).round().long()
        least = leave_one_out(x[places], target[places])
        if least is not None:
            _, self._length, self._noise = least

    def _inputs(self, z: Tensor, others: Tensor) -> Tensor:
        """Inputs in units of mean zero and spread one."""
        mean, scale = self._units[:2]
        return (torch.cat([z, others], 1).double() - mean) / scale

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """Kernel and trend: `(rows, size_in)` to `(rows, size_out)`."""
        x = self._inputs(z, others)
        centres, weights, slope, offset = self._fit
        near = torch.exp(-_squares(x, centres) / (2 * self._length**2))
        change = near @ weights + x @ slope + offset
        return self.carried(z) + (self._units[2] + self._units[3] * change).to(z.dtype)

    def known_at(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The mean at each call."""
        together = at_calls(calls, self.values)
        return [_KernelAt(rows, self, together, number) for number, rows in enumerate(calls)]

    def pulled(self, z: Tensor, others: Tensor, v: Tensor) -> Tensor:
        """J^T v of each row: `(rows, size_out)` to `(rows, size_in)`."""
        x = self._inputs(z, others)
        centres, weights, slope, _ = self._fit
        standard = v.double() * self._units[3]
        pull = torch.exp(-_squares(x, centres) / (2 * self._length**2)) * (standard @ weights.T)
        gradient = standard @ slope.T + (pull @ centres - x * pull.sum(1, keepdim=True)) / self._length**2
        size = z.shape[1]
        base = self._form.followed_back(self._stays.to(v) * v)
        return base + (gradient[:, :size] / self._units[1][:size]).to(v)

    def state_dict(self) -> dict[str, Any]:
        """The fit, and the rows that the next one is made of."""
        if not self._form:
            return {"form": None}
        return self.kept() | {
            "chosen": (self._length, self._noise, self._last_choice, self._last_fit),
            "units": [tensor.clone() for tensor in self._units],
            "fit": [tensor.clone() for tensor in self._fit],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            self._forget(self._window.rows)
            return
        self.load_kept(state)
        self._length, self._noise, self._last_choice, self._last_fit = state["chosen"]
        device = self._window.columns[0].device
        self._units = tuple(tensor.to(device, copy=True) for tensor in state["units"])
        self._fit = tuple(tensor.to(device, copy=True) for tensor in state["fit"])

    def __repr__(self) -> str:
        """The number of centres."""
        return f"KernelTangent(centres={self.centres})"


class _KernelAt(ModelAt):
    """The mean of the process at the rows of a call, its adjoint written out."""

    def __init__(self, rows: CallPairs, tangent: KernelTangent, together: Together, number: int) -> None:
        super().__init__(rows, tangent.values, together, number)
        self._pulled = tangent.pulled

    def pull(self, v: Tensor) -> Tensor:
        """The mean's J^T v."""
        return self._pulled(self.rows.z, self.others, v)


def leave_one_out(x: Tensor, wanted: Tensor) -> tuple[float, float, float] | None:
    """The smallest mean square error of a row that the others predict, with its length and its noise.

    Args:
        x: inputs in units of spread one, `(rows, size)`.
        wanted: what is predicted, `(rows, size_out)`.

    Returns:
        The error, the kernel's length and the noise; None where no error is finite.
    """
    squares, least = _squares(x, x), None
    usual = float(squares.mean().sqrt()) or 1.0
    for length in LENGTHS:
        kernel = torch.exp(-squares / (2 * (length * usual) ** 2)) + _trend(x, x)
        values, vectors = torch.linalg.eigh(kernel)
        rotation = vectors.T @ wanted
        for noise in NOISES:
            inverse = 1 / (values.clamp_min(0) + noise)
            errors = (vectors @ (inverse[:, None] * rotation)) / (vectors.square() @ inverse)[:, None]
            error = float(errors.square().mean())
            if error < (math.inf if least is None else least[0]):
                least = error, length * usual, noise
    return least


def leave_out(groups: Sequence[Tensor], x: Tensor, wanted: Tensor, length: float, noise: float) -> float:
    """The mean square error of rows that are predicted without all of their group, in closed form.

    Args:
        groups: places of rows, each row in one group.
        x: inputs in units of spread one, `(rows, size)`.
        wanted: what is predicted, `(rows, size_out)`.
        length: the kernel's.
        noise: its variance.
    """
    kernel = torch.exp(-_squares(x, x) / (2 * length**2)) + _trend(x, x)
    kernel.diagonal().add_(noise)
    inverse = torch.linalg.inv(kernel)
    weights = inverse @ wanted
    errors = [torch.linalg.solve(inverse[rows[:, None], rows], weights[rows]) for rows in groups]
    return float(torch.cat(errors).square().mean())


def _trend(a: Tensor, b: Tensor) -> Tensor:
    return TREND * (1 + a @ b.T / a.shape[1])


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows, `(rows of a, rows of b)`."""
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
