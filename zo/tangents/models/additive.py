"""`AdditiveTangent`: the mean of an additive Gaussian process whose pairs of inputs are learned.

The covariance is 1 + sum_i r_i k_i + q sum_(i<j) A_ij k_i k_j. The k_i are one-dimensional squared
exponentials, centred under a standard normal input: additive kernels (Duvenaud, Nickisch and Rasmussen 2011)
in their orthogonal form (Lu, Boukouvalas and Hensman 2022). The parts of inputs and of pairs are orthogonal,
and their variances, Sobol's indices but for a factor, are known in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from zo.errors import TangentError
from zo.tangents.models.gaussian_process import Kept
from zo.tangents.models.kernel import KernelTangent
from zo.tangents.models.row_window import spread_places

LENGTH = 3.0  # of the one-dimensional kernels, in units of an input's spread
DEGREE = 4  # eigenfunctions of each; the eigenvalues fall elevenfold from one to the next
PAIRED = tuple((f, g) for f in range(DEGREE) for g in range(DEGREE) if f + g < 3)  # of a strong pair
STRONG = 8  # pairs for each input that have weights of their own; the others share one
RATIOS = (0.003, 0.01, 0.03, 0.1, 0.3)  # of pairs to the single inputs
NOISES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ROUNDS = 3
JUDGED = 1000  # rows by whose leave-one-out errors weights and noise are chosen
AT_ONCE = 2**24  # numbers of features that are held at a time
DRAWN = 8  # random sums of outputs by which the parts are compared


@lru_cache
def _eigen() -> tuple[Tensor, Tensor, Tensor]:
    """Nodes `(48,)`, and what makes features of covariances with them `(48, DEGREE)`; eigenvalues.

    By quadrature under a standard normal input (Rasmussen and Williams 2006, section 4.3.2).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    t = torch.from_numpy(nodes)
    root = torch.from_numpy(weights / weights.sum()).sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * _centred(t, t) * root)
    values, vectors = values[-DEGREE:].flip(0), vectors[:, -DEGREE:].flip(1)
    vectors = vectors * vectors[-24:].sum(0).sign()
    return t, root[:, None] * vectors / values.sqrt(), values


def _centred(u: Tensor, v: Tensor) -> Tensor:
    """The kernel less its projection on constants, over its variance on those: `(..., u, v)`."""
    l2 = LENGTH**2
    bell = 1 / (2 * (l2 + 1))
    means = torch.exp(-bell * u.square())[..., None] * torch.exp(-bell * v.square())
    near = torch.exp(-(u[..., None] - v).square() / (2 * l2))
    return near * (l2 + 1) - LENGTH * math.sqrt(l2 + 2) * means


def features(x: Tensor) -> Tensor:
    """The eigenfunctions of each input, times the roots of eigenvalues: `(rows, size, DEGREE)`."""
    nodes, to_features, _ = (part.to(x.device) for part in _eigen())
    return torch.cat([_centred(some, nodes) @ to_features for some in x.split(max(1, 2**18 // x.shape[1]))])


@dataclass(frozen=True)
class Weights(Kept):
    """The weights of a covariance.

    Attributes:
        single: r, `(size,)`, with a mean of one.
        shared: the weight of pairs that have none of their own.
        pairs: strong pairs, places i < j, `(pairs, 2)`.
        strong: the weight of each beside the shared one, `(pairs,)`.
        ratio: q, the weight of pairs over that of single inputs.
    """

    single: Tensor
    shared: float
    pairs: Tensor
    strong: Tensor
    ratio: float

    def parts(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances by single inputs and by pairs, without `ratio`; from `features`; `(rows, rows)`."""
        size = a.shape[1]
        alone = (a * (self.single / size)[:, None]).flatten(1) @ b.flatten(1).T
        scale = 1 / (size * max(size - 1, 1))
        together = self.shared * scale * (a.flatten(1) @ b.flatten(1).T).square()
        f, g = torch.triu_indices(DEGREE, DEGREE, device=a.device)
        twice = torch.where(f == g, 1.0, 2.0).to(a)
        together -= (
            self.shared
            * scale
            * ((a[..., f] * a[..., g] * twice).flatten(1) @ (b[..., f] * b[..., g]).flatten(1).T)
        )
        at_once = max(1, AT_ONCE // (len(PAIRED) * (len(a) + len(b))))
        for pairs, strong in zip(self.pairs.split(at_once), self.strong.split(at_once), strict=True):
            together = together + self._products(a, pairs, 2 * scale * strong) @ self._products(b, pairs).T
        return alone, together

    def _products(self, a: Tensor, pairs: Tensor, times: Tensor | None = None) -> Tensor:
        """Products of the features of pairs, `(rows, pairs * len(PAIRED))`."""
        f, g = (torch.tensor(places, device=a.device) for places in zip(*PAIRED, strict=True))
        products = a[:, pairs[:, 0]][..., f] * a[:, pairs[:, 1]][..., g]
        return (products if times is None else products * times[:, None]).flatten(1)

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """The whole covariance of rows of `features`, `(rows of a, rows of b)`."""
        alone, together = self.parts(a, b)
        return 1 + alone + self.ratio * together

    def contracted(self, phi: Tensor, by_row: Tensor) -> Callable[[Tensor], Tensor]:
        """`covariance(a, phi) @ by_row` as a function of a, with all sums over the rows of phi made but one.

        A product of features of a pair has no sum over rows left; the square of all pairs alike has.
        """
        size = phi.shape[1]
        scale = self.ratio / (size * max(size - 1, 1))
        f, g = torch.triu_indices(DEGREE, DEGREE, device=phi.device)
        twice = torch.where(f == g, 1.0, 2.0).to(phi) * (self.shared * scale)
        flat, constant = phi.flatten(1), by_row.sum(0)
        alone = (phi * (self.single / size)[:, None]).flatten(1).T @ by_row
        same = (phi[..., f] * phi[..., g] * twice).flatten(1).T @ by_row
        at_once = max(1, AT_ONCE // (len(PAIRED) * len(phi)))
        of_pairs = [
            (pairs, self._products(phi, pairs, 2 * scale * strong).T @ by_row)
            for pairs, strong in zip(self.pairs.split(at_once), self.strong.split(at_once), strict=True)
        ]

        def mean(a: Tensor) -> Tensor:
            row = a.flatten(1)
            all_pairs = (row @ flat.T).square() @ by_row * (self.shared * scale)
            total = constant + row @ alone + all_pairs - (a[..., f] * a[..., g]).flatten(1) @ same
            for pairs, coefficients in of_pairs:
                total = total + self._products(a, pairs) @ coefficients
            return total

        return mean

    def matrix(self) -> Tensor:
        """A, `(size, size)`, with a diagonal of zero."""
        size = len(self.single)
        matrix = self.single.new_full((size, size), self.shared).fill_diagonal_(0)
        i, j = self.pairs.T
        matrix[i, j] += self.strong
        matrix[j, i] += self.strong
        return matrix


@dataclass(frozen=True)
class AdditiveProcess(Kept):
    """The mean of the process for all outputs, given rows.

    Attributes:
        outputs: the places of the outputs, `(outputs,)`.
        weights: the weights of the covariance.
        noise: the variance of the noise, over that of a constant.
        by_row: the weights of each row, `(centres, outputs)`.
        error: mean square error of rows left out, in units of one, when the weights were chosen.
    """

    outputs: Tensor
    weights: Weights
    noise: float
    by_row: Tensor
    error: float

    @classmethod
    def fitted(
        cls, x: Tensor, wanted: Tensor, weights: Weights, noise: float, error: float
    ) -> AdditiveProcess:
        """The one of rows `(centres, size)` and what is wanted there, `(centres, outputs)`.

        Raises:
            TangentError: there is no fit with any noise.
        """
        phi = features(x)
        kernel = torch.cat([weights.covariance(some, phi) for some in phi.split(1024)])
        diagonal = kernel.diagonal().clone()
        for level in (noise, *(more for more in NOISES if more > noise)):
            kernel.diagonal().copy_(diagonal + level)
            root, wrong = torch.linalg.cholesky_ex(kernel)
            if not int(wrong):
                outputs = torch.arange(wanted.shape[1], device=x.device)
                return cls(outputs, weights, level, torch.cholesky_solve(wanted, root), error)
        raise TangentError(
            f"AdditiveTangent: expected {len(x)} rows whose covariances have a Cholesky factor, got none "
            "with any noise. See whether the box's inputs and outputs are finite and of usual size."
        )

    @classmethod
    def means(cls, processes: Sequence[AdditiveProcess], centres: Tensor) -> list[AdditiveMean]:
        """The means of the processes that were given rows `(centres, size)`."""
        phi = features(centres)
        return [AdditiveMean(p.outputs, p.weights.contracted(phi, p.by_row)) for p in processes]

    def state(self) -> dict[str, Any]:
        """Its attributes, those of the weights among them."""
        plain = super().state()
        return plain | plain.pop("weights").state()

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> Self:
        """The one whose `state` it was."""
        weights = {name: state[name] for name in Weights.__dataclass_fields__}
        plain = {name: value for name, value in state.items() if name not in weights}
        return super().of(plain | {"weights": Weights.of(weights, device)}, device)


@dataclass(frozen=True)
class AdditiveMean:
    """The mean of a process.

    Attributes:
        outputs: the places of the outputs, `(outputs,)`.
        of_features: gives the mean at `features`.
    """

    outputs: Tensor
    of_features: Callable[[Tensor], Tensor]

    def at(self, x: Tensor) -> Tensor:
        """The outputs: `(rows, size)` to `(rows, outputs)`."""
        return torch.cat([self.of_features(features(some)) for some in x.split(1024)])

    def pulled(self, x: Tensor, v: Tensor) -> Tensor:
        """The mean's J^T v of each row: `(rows, outputs)` to `(rows, size)`."""
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.at(at), at, v)
        return gradient


class AdditiveTangent(KernelTangent):
    """The derivative of an additive Gaussian process's mean, with pairs, for tens to hundreds of inputs.

    In units of mean zero and spread one the covariance is 1 + sum over inputs r_i k_i + q sum over pairs
    A_ij k_i k_j. The k_i are squared exponentials of length 3, centred under a standard normal and cut after
    four eigenfunctions (Duvenaud, Nickisch and Rasmussen, "Additive Gaussian processes", 2011; Lu,
    Boukouvalas and Hensman, "Additive Gaussian processes revisited", 2022). The weights r and A are learned:
    they begin equal, then each is set by the variance of its own part of the mean, and the process is fitted
    again. The weights, q and the noise with the smallest leave-one-out error are kept. Eight pairs for each
    input may have weights of their own, and all others share one.

    It helps where many inputs act in the same way and in pairs, as cells of a field do. Where the inputs are
    rotated, or act through one sum, another model is better: choose by held-out rows, as `SelectedTangent`.

    It takes the memory and time of `KernelTangent`, and some 50 products for each input and pair of rows.

    Args:
        centres: rows to which it is fitted, evenly taken from the window.
        window: rows kept, the oldest going.

    Raises:
        ConfigurationError: a value out of its range.
    """

    process = AdditiveProcess

    def __init__(self, centres: int = 5000, *, window: int = 5000) -> None:
        super().__init__(centres, window=window)

    def fitted(self, x: Tensor, target: Tensor, again: bool) -> tuple[list[Any], bool]:
        """One process, its weights chosen where they are to be."""
        if again and (better := chosen(x, target)):
            return [AdditiveProcess.fitted(x, target, *better)], True
        choices = [(process.weights, process.noise, process.error) for process in self._fit]
        return [AdditiveProcess.fitted(x, target, *choice) for choice in choices], False

    def pairs(self) -> Tensor:
        """The weights A of pairs, `(size, size)`, other inputs after those with a gradient; one is usual.

        Raises:
            TangentError: it has learned nothing.
        """
        if not self._fit:
            raise TangentError("AdditiveTangent.pairs: expected rows first, got none. Call fit() or learn().")
        matrix: Tensor = self._fit[0].weights.matrix()
        return matrix


def chosen(x: Tensor, wanted: Tensor) -> tuple[Weights, float, float] | None:
    """Weights, a noise, and the mean square leave-one-out error; None where no error is finite.

    Args:
        x: inputs in units of spread one, `(rows, size)`; at most 1,000 rows are used.
        wanted: the targets, in such units, `(rows, size_out)`.
    """
    places = spread_places(len(x), JUDGED).to(x.device)
    x, y = x[places], wanted[places]
    phi, size = features(x), x.shape[1]
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn(y.shape[1], DRAWN, generator=generator, dtype=torch.float64).to(x)
    none = torch.empty(0, 2, dtype=torch.long, device=x.device)
    weights = Weights(x.new_ones(size), 1.0, none, x.new_empty(0), RATIOS[2])
    best: tuple[Weights, float, float] | None = None
    for number in range(ROUNDS + 1):
        alone, together = weights.parts(phi, phi)
        ratios = RATIOS if number in (0, ROUNDS) else (weights.ratio,)
        error, least, by_row = math.inf, None, y
        for ratio in ratios:
            values, vectors = torch.linalg.eigh(1 + alone + ratio * together)
            rotated = vectors.T @ y
            for noise in NOISES:
                inverse = 1 / (values.clamp_min(0) + noise)
                solved = vectors @ (inverse[:, None] * rotated)
                missed = float((solved / (vectors.square() @ inverse)[:, None]).square().mean())
                if missed < error:
                    error, least, by_row = missed, (ratio, noise), solved
        if least is None:
            return best
        weights = Weights(weights.single, weights.shared, weights.pairs, weights.strong, least[0])
        if best is None or error < best[2]:
            best = weights, least[1], error
        if number < ROUNDS:
            weights = _learned(phi, by_row @ sums, weights)
    return best


def _learned(phi: Tensor, by_row: Tensor, weights: Weights) -> Weights:
    """New weights, by the variances of the parts of the mean: of pairs as they are, of inputs by roots."""
    size, values = phi.shape[1], _eigen()[2].to(phi)
    flat, last = phi.flatten(1), weights.matrix()
    parts, singles = torch.zeros_like(last), torch.zeros_like(weights.single)
    by_value = values.repeat(size)
    for column in by_row.T:
        products = (flat.T * column) @ flat
        squares = products.square() * by_value[:, None] * by_value
        parts += squares.view(size, DEGREE, size, DEGREE).sum((1, 3))
        singles += ((flat.T @ column).square() * by_value).view(size, DEGREE).sum(1)
    matrix = (parts * last.square()).fill_diagonal_(0)
    matrix = matrix * (size * (size - 1)) / matrix.sum().clamp_min(1e-300)
    i, j = torch.triu_indices(size, size, 1, device=phi.device)
    pair_weights = matrix[i, j]
    count = min(len(pair_weights), STRONG * size)
    order = pair_weights.argsort(descending=True)
    strong, weak = order[:count], order[count:]
    shared = float(pair_weights[weak].mean()) if len(weak) else 0.0
    single = weights.single * singles.sqrt()
    single = (single / single.mean().clamp_min(1e-300)).sqrt()
    excess = (pair_weights[strong] - shared).clamp_min(0)
    return Weights(single, shared, torch.stack([i, j], 1)[strong], excess, weights.ratio)
