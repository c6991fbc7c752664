"""Gaussian processes of a squared exponential kernel beside a trend: fits, lengths, errors left out.

Covariances are exp(-sum over inputs i of (x_i - x'_i)^2 / 2 l_i^2) + 10 (1 + x . x' / n) for n numbers of
inputs, in units of spread one, and with a curvature c also c (x . x' / n)^2 (Rasmussen and Williams,
*Gaussian Processes for Machine Learning*, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.autograd import Function

from zo.errors import TangentError
from zo.tangents.models.row_window import spread_places

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the kernel, over the usual distance of two rows
NOISES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)  # variances, over the kernel's own
TREND = 10.0  # variance of the linear part, over the kernel's own; decision 77
AT_ONCE = 2**18  # covariances that are computed at a time: a processor keeps them near
# of the search for lengths, decision 148:
ROWS = 128  # whose likelihood it is
STEPS = 40  # at most
DEVIATION = 2.0  # of the prior of a length's logarithm, about that of one length for all
FLAT = 0.05  # of an input's variance, which comes to that of each principal axis; decision 245
SHORTEST = 0.05  # over one length for all: shorter ones leave distances of far rows to rounding


class Choice(NamedTuple):
    """Lengths and a noise, and their errors.

    Attributes:
        lengths: the lengths of the kernel, one for each input, `(size,)`.
        noise: the variance of the noise, over the kernel's own.
        errors: mean square leave-one-out errors, `(size_out,)`.
        curvature: the variance of the quadratic part, over the kernel's own.
    """

    lengths: Tensor
    noise: float
    errors: Tensor
    curvature: float


@dataclass(frozen=True)
class Kept:
    """A record of tensors and plain values that goes into checkpoints."""

    def state(self) -> dict[str, Any]:
        """Its attributes by name."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Self:
        """The one whose `state` it was."""
        values: dict[str, Any] = {
            name: v.to(device, copy=True) if isinstance(v, Tensor) else v for name, v in state.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Process(Kept):
    """A process for some outputs, given rows `(centres, size)`.

    Attributes:
        outputs: the places of the outputs, `(outputs,)`.
        lengths: the lengths of the kernel, `(size,)`.
        noise: the variance of the noise, over the kernel's own.
        weights: the weights of each row, `(centres, outputs)`.
        slope: the slope of the trend, `(size, outputs)`.
        offset: the offset of the trend, `(outputs,)`.
        curvature: the variance of the quadratic part of the trend, over the kernel's own.
        axes: the matrix that takes inputs to the kernel's axes, `(size, size)`; None for none.
    """

    outputs: Tensor
    lengths: Tensor
    noise: float
    weights: Tensor
    slope: Tensor
    offset: Tensor
    curvature: float = 0.0
    axes: Tensor | None = None

    @classmethod
    def fitted(
        cls,
        centres: Tensor,
        wanted: Tensor,
        outputs: Tensor,
        lengths: Tensor,
        noise: float,
        curvature: float,
        axes: Tensor | None = None,
    ) -> Process:
        """The one for some outputs, of all that is wanted at the rows, `(centres, all outputs)`.

        Of far rows distances are rounded by more than the noise: then it has the next larger one.

        Raises:
            TangentError: there is no fit with any noise.
        """
        centres = along(axes, centres)
        root, level = _root(centres, lengths, noise, curvature)
        weights = torch.cholesky_solve(wanted[:, outputs], root).contiguous()
        slope, offset = (TREND / centres.shape[1]) * (centres.T @ weights), TREND * weights.sum(0)
        return cls(outputs, lengths, level, weights, slope, offset, curvature, axes)

    @classmethod
    def means(cls, processes: Sequence[Process], centres: Tensor) -> list[Means]:
        """The means of processes that share their axes, those of equally many outputs at once.

        Args:
            processes: the processes.
            centres: the rows that they were given, `(centres, size)`.
        """
        by_count: dict[int, list[Process]] = {}
        for process in processes:
            by_count.setdefault(len(process.outputs), []).append(process)
        return [Means(several, centres) for several in by_count.values()]


class Means:
    """The means of several processes that have the same centres, axes and number of outputs, all at once.

    Args:
        processes: the processes.
        centres: the rows that they were given, `(centres, size)`.

    Attributes:
        outputs: the places of the outputs, those of the first process first, `(outputs,)`.
    """

    def __init__(self, processes: Sequence[Process], centres: Tensor) -> None:
        self._axes = processes[0].axes
        self._centres = along(self._axes, centres)
        self._lengths = torch.stack([process.lengths for process in processes])[:, None]
        self._scaled = (self._centres / self._lengths).mT.contiguous()  # (processes, size, centres)
        self._squares = self._scaled.square().sum(1, keepdim=True)
        self._weights = torch.stack([process.weights for process in processes])
        curvatures = [process.curvature for process in processes]
        self._curvature = centres.new_tensor(curvatures)[:, None, None] if any(curvatures) else None
        self._slope = torch.cat([process.slope for process in processes], 1)
        self._offset = torch.cat([process.offset for process in processes])
        self.outputs = torch.cat([process.outputs for process in processes])

    def at(self, x: Tensor) -> Tensor:
        """The outputs: `(rows, size)` to `(rows, outputs)`, differentiable by x as often as one likes."""
        return _MeansAt.apply(self, along(self._axes, x))

    def pulled(self, x: Tensor, v: Tensor) -> Tensor:
        """J^T v of each row: `(rows, outputs)` to `(rows, size)`."""
        pulled = self.pulled_along_axes(along(self._axes, x), v)
        return pulled if self._axes is None else pulled @ self._axes.T

    def along_axes(self, x: Tensor) -> Tensor:
        """The outputs at inputs along the axes."""
        means = [self._at(some) for some in x.split(self._at_once)]
        return means[0] if len(means) == 1 else torch.cat(means)

    def pulled_along_axes(self, x: Tensor, v: Tensor) -> Tensor:
        """J^T v by inputs along the axes: `(rows, outputs)` to `(rows, size)`."""
        pairs = zip(x.split(self._at_once), v.split(self._at_once), strict=True)
        pulls = [self._pulled(some, v_some) for some, v_some in pairs]
        return pulls[0] if len(pulls) == 1 else torch.cat(pulls)

    def pushed(self, x: Tensor, d: Tensor) -> Tensor:
        """J d by inputs along the axes: `(rows, size)` to `(rows, outputs)`."""
        pairs = zip(x.split(self._at_once), d.split(self._at_once), strict=True)
        return torch.cat([self._pushed(some, d_some) for some, d_some in pairs])

    def _pushed(self, x: Tensor, d: Tensor) -> Tensor:
        scaled, change = x / self._lengths, d / self._lengths
        moved = self._near(x) * (change @ self._scaled - (scaled * change).sum(2, keepdim=True))
        if self._curvature is not None:
            bent = (x @ self._centres.T) * (d @ self._centres.T)
            moved = moved + 2 / x.shape[1] ** 2 * self._curvature * bent
        return d @ self._slope + (moved @ self._weights).movedim(0, 1).flatten(1)

    @property
    def _at_once(self) -> int:
        """The number of rows that are taken at a time."""
        return max(1, AT_ONCE // (len(self._weights) * len(self._centres)))

    def _at(self, x: Tensor) -> Tensor:
        covariances = self._near(x)
        if self._curvature is not None:
            covariances = covariances + self._curvature * (x @ self._centres.T / x.shape[1]).square()
        means = (covariances @ self._weights).movedim(0, 1).flatten(1)
        return torch.addmm(self._offset, x, self._slope) + means

    def _pulled(self, x: Tensor, v: Tensor) -> Tensor:
        by_process = v.unflatten(1, (len(self._weights), -1)).movedim(1, 0)
        by_centre = by_process @ self._weights.mT  # (processes, rows, centres)
        near = self._near(x) * by_centre
        pulls = (near @ self._scaled.mT - x / self._lengths * near.sum(2, keepdim=True)) / self._lengths
        pull = torch.addmm(pulls.sum(0), v, self._slope.T)
        if self._curvature is None:
            return pull
        bent = (self._curvature * by_centre).sum(0) * (x @ self._centres.T)
        return pull + (2 / x.shape[1] ** 2) * (bent @ self._centres)

    def _near(self, x: Tensor) -> Tensor:
        """Covariances of the kernels with the centres, `(processes, rows, centres)`."""
        scaled = x / self._lengths
        squares = torch.baddbmm(self._squares, scaled, self._scaled, alpha=-2)
        return torch.exp((squares + scaled.square().sum(2, keepdim=True)).clamp_min(0) / -2)


class _MeansAt(Function):
    """The means at inputs along their axes, whose derivative is written out: it can be derived again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(means: Means, x: Tensor) -> Tensor:
        return means.along_axes(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Means, Tensor], output: Tensor) -> None:
        ctx.means, x = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, ctx.means.pulled_along_axes(x, v)

    @staticmethod
    def jvp(ctx: Any, _: None, d: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return ctx.means.pushed(x, d)


def along(axes: Tensor | None, x: Tensor) -> Tensor:
    """Inputs along some axes; as they are where there are none."""
    return x if axes is None else x @ axes


def one_length(x: Tensor, wanted: Tensor, curvature: float = 0.0) -> Choice | None:
    """One length for all inputs, and a noise, with the smallest leave-one-out error.

    Args:
        x: inputs in units of spread one, `(rows, size)`.
        wanted: the targets, `(rows, size_out)`.
        curvature: the variance of the quadratic part.

    Returns:
        None where no error is finite.
    """
    usual = float(_squares(x, x).mean().sqrt()) or 1.0
    return best_factor(x, wanted, x.new_full((x.shape[1],), usual), LENGTHS, curvature)


def best_factor(
    x: Tensor, wanted: Tensor, lengths: Tensor, factors: Sequence[float], curvature: float
) -> Choice | None:
    """The best of some factors on lengths, and a noise, as `one_length`; in closed form, all noises at once.

    Args:
        x: inputs in units of spread one, `(rows, size)`.
        wanted: the targets, `(rows, size_out)`.
        lengths: the lengths of the kernel, `(size,)`.
        factors: the factors on the lengths.
        curvature: the variance of the quadratic part.

    Returns:
        None where no error is finite.
    """
    distances, trend = _squares(x / lengths, x / lengths), trend_of(x, x, curvature)
    best, least = None, math.inf
    for factor in factors:
        kernel = torch.exp(-distances / (2 * factor**2)) + trend
        for noise, squares in _left_out(kernel, wanted):
            errors = squares.mean(0)
            if float(errors.mean()) < least:
                best, least = Choice(lengths * factor, noise, errors, curvature), float(errors.mean())
    return best


def noise_of(x: Tensor, wanted: Tensor, lengths: Tensor, curvature: float) -> float:
    """The largest noise whose leave-one-out error is within a standard error of the least.

    Where rows follow a function with kinks, less noise predicts them as well, and makes slopes too steep
    (Breiman et al., *Classification and Regression Trees*, 1984: the rule of one standard error).

    Args:
        x: inputs in units of spread one, `(rows, size)`.
        wanted: the targets, `(rows, size_out)`.
        lengths: the lengths of the kernel, `(size,)`.
        curvature: the variance of the quadratic part.
    """
    kernel = _near(x / lengths, x / lengths) + trend_of(x, x, curvature)
    errors = {noise: squares.mean(1) for noise, squares in _left_out(kernel, wanted)}
    best = min(errors.values(), key=lambda rows: float(rows.mean()))
    most = float(best.mean() + best.std() / len(best) ** 0.5)
    return max((noise for noise, rows in errors.items() if float(rows.mean()) <= most), default=NOISES[0])


def _left_out(kernel: Tensor, wanted: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Squared errors of rows that are left out one by one, `(rows, size_out)`, with each noise."""
    values, vectors = torch.linalg.eigh(kernel)
    rotation, squares = vectors.T @ wanted, vectors.square()
    for noise in NOISES:
        inverse = 1 / (values.clamp_min(0) + noise)
        missed = (vectors @ (inverse[:, None] * rotation)) / (squares @ inverse)[:, None]
        yield noise, missed.square()


def leave_out(groups: Sequence[Tensor], x: Tensor, wanted: Tensor, lengths: Tensor, noise: float) -> float:
    """The mean square error of rows that are predicted without all of their group, in closed form.

    Args:
        groups: places of rows, each row in one group.
        x: inputs in units of spread one, `(rows, size)`.
        wanted: the targets, `(rows, size_out)`.
        lengths: the lengths of the kernel, `(size,)`.
        noise: the variance of the noise.
    """
    kernel = _near(x / lengths, x / lengths) + trend_of(x, x, 0.0)
    kernel.diagonal().add_(noise)
    inverse = torch.linalg.inv(kernel)
    weights = inverse @ wanted
    errors = [torch.linalg.solve(inverse[rows[:, None], rows], weights[rows]) for rows in groups]
    return float(torch.cat(errors).square().mean())


def left_out(x: Tensor, wanted: Tensor, lengths: Tensor, noise: float, curvature: float) -> Tensor:
    """Squared errors of rows that are left out one by one, `(rows, size_out)`, as those of `best_factor`.

    Args:
        x: inputs in units of spread one, `(rows, size)`.
        wanted: the targets, `(rows, size_out)`.
        lengths: the lengths of the kernel.
        noise: the variance of the noise.
        curvature: the variance of the quadratic part.

    Raises:
        TangentError: there is no fit with any noise.
    """
    root, _ = _root(x, lengths, noise, curvature)
    inverse = torch.cholesky_inverse(root)
    return ((inverse @ wanted) / inverse.diagonal()[:, None]).square()


def least_unexplained(x: Tensor) -> float:
    """The least share of an input's variance that the others do not explain linearly; 0 of too few rows.

    Args:
        x: inputs in units of spread one, `(rows, size)`; one that never changes counts as none.
    """
    x = x - x.mean(0)
    spread = x.square().mean(0).sqrt()
    x = x[:, spread > 1e-6] / spread[spread > 1e-6]
    rows, size = x.shape
    if size < 2:
        return 1.0
    if rows <= size + 1:
        return 0.0
    values, vectors = torch.linalg.eigh(x.T @ x / (rows - size))
    return float(1 / (vectors.square() @ (1 / values.clamp_min(1e-12))).max())


def principal_axes(x: Tensor) -> Tensor:
    """The matrix that takes inputs to their principal axes, in units of their spread, `(size, size)`.

    Two observations of one state, one step apart, nearly explain each other, and their difference is a speed.
    Along the inputs themselves so small a difference is hardly seen; along these axes it is (the distance of
    Mahalanobis). An axis of nearly no spread has a unit of its own, see `FLAT`.

    Args:
        x: inputs in units of spread one, `(rows, size)`.
    """
    variances, axes = torch.linalg.eigh(torch.cov(x.T))
    return axes / (variances.clamp_min(0) + FLAT).sqrt()


def likely_lengths(x: Tensor, wanted: Tensor, begin: Choice) -> Tensor:
    """A length for each input, of the largest marginal likelihood times a prior about one length for all.

    The outputs share lengths and noise, and each has its own variance, at its likeliest. An input that the
    outputs do not depend on, or depend on linearly, gets a long one ("automatic relevance determination").

    Args:
        x: inputs in units of spread one, `(rows, size)`; of more than 128 rows so many are taken.
        wanted: outputs in such units, `(rows, size_out)`, which change.
        begin: one length for all, noise and curvature, from which the search begins.

    Returns:
        Lengths `(size,)`.
    """
    places = spread_places(len(x), ROWS).to(x.device)
    x_cpu, y = x[places].cpu(), wanted[places].cpu()
    size, usual = x.shape[1], math.log(float(begin.lengths[0]))
    trend = trend_of(x_cpu, x_cpu, begin.curvature)

    def loss(logarithms: np.ndarray) -> tuple[float, np.ndarray]:
        value, by_logarithm = unlikeliness(x_cpu, y, torch.from_numpy(logarithms), trend)
        off = (logarithms[:size] - usual) / DEVIATION
        gradient = by_logarithm.numpy()
        gradient[:size] += off / DEVIATION
        return value + float(off @ off) / 2, gradient

    optimum = minimize(
        loss,
        np.append(np.full(size, usual), math.log(begin.noise)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(usual + math.log(SHORTEST), None)] * size + [(math.log(NOISES[0]), math.log(NOISES[-1]))],
        options={"maxiter": STEPS},
    )
    return torch.from_numpy(optimum.x[:size]).exp().to(x)


def unlikeliness(x: Tensor, y: Tensor, logarithms: Tensor, trend: Tensor) -> tuple[float, Tensor]:
    """The negative logarithm of the marginal likelihood, but for a constant, and its gradient.

    Args:
        x: inputs, `(rows, size)`.
        y: outputs, `(rows, size_out)`.
        logarithms: the logarithms of the lengths and of the noise, `(size + 1,)`.
        trend: the rows' covariances of the trend, which no length changes, see `trend_of`.

    Returns:
        The value, infinite where the covariance is singular to rounding, and its gradient by `logarithms`.
    """
    rows, outputs = y.shape
    scaled, noise = x / logarithms[:-1].exp(), float(logarithms[-1].exp())
    near = _near(scaled, scaled)
    kernel = near + trend
    kernel.diagonal().add_(noise)
    root, wrong = torch.linalg.cholesky_ex(kernel)
    weights = torch.cholesky_solve(y, root)
    variances = (y * weights).mean(0)  # the likeliest
    value = outputs * root.diagonal().log().sum() + rows / 2 * variances.log().sum()
    if int(wrong) or not bool(value.isfinite()):
        return math.inf, torch.zeros_like(logarithms)
    twice = outputs * torch.cholesky_inverse(root) - (weights / variances) @ weights.T  # by the covariances
    by_noise = noise / 2 * twice.diagonal().sum()
    twice = twice * near
    by_lengths = twice.sum(0) @ scaled.square() - (scaled * (twice @ scaled)).sum(0)
    return float(value), torch.cat([by_lengths, by_noise[None]])


def _root(centres: Tensor, lengths: Tensor, noise: float, curvature: float) -> tuple[Tensor, float]:
    """The Cholesky root of the covariances of rows, and the noise with which there is one."""
    kernel = _near(centres / lengths, centres / lengths) + trend_of(centres, centres, curvature)
    diagonal = kernel.diagonal().clone()
    for level in (noise, *(more for more in NOISES if more > noise)):
        kernel.diagonal().copy_(diagonal + level)
        root, wrong = torch.linalg.cholesky_ex(kernel)
        if not int(wrong):
            return root, level
    raise TangentError(
        f"KernelTangent: expected {len(centres)} rows whose covariances have a Cholesky factor, got "
        "none with any noise. See whether the box's inputs and outputs are finite and of usual size."
    )


def trend_of(a: Tensor, b: Tensor, curvature: float) -> Tensor:
    """Covariances of the linear part, and of the quadratic one, `(rows of a, rows of b)`."""
    linear = TREND * (1 + a @ b.T / a.shape[1])
    return linear + _curved(a, b, curvature) if curvature else linear


def _curved(a: Tensor, b: Tensor, curvature: float) -> Tensor:
    """Covariances of the quadratic part, `(rows of a, rows of b)`."""
    return curvature * (a @ b.T / a.shape[1]).square()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows, `(rows of a, rows of b)`."""
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Covariances of the kernel of rows over its lengths, `(rows of a, rows of b)`."""
    return torch.exp(-_squares(a, b) / 2)
