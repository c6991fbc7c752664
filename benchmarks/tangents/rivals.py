"""Rivals that move the weights and look at what comes out: ZO-Muon, EGGROLL, ensemble Kalman inversion."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.tangents.problem import BenchmarkProblem
from zo.draws import Key
from zo.estimators.estimator import Estimator
from zo.parameters import Parameters
from zo.perturbation import Directions, Perturbations

SUBSPACE, FACTORS, PARTICLES = 111, 112, 113  # first words of the keys' paths for these draws
STEP = 0.2  # of ZO-Muon, root mean square of an entry: that of Adam (Liu et al. 2025, arXiv 2502.16982)


@dataclass(frozen=True)
class Drawn(Perturbations):
    """Directions that are drawn as a whole.

    Attributes:
        directions: `(queries, size)`, without their length.
        length: of a query's step, in directions.
        shapes: of the parameters.
    """

    directions: Tensor
    length: float
    shapes: tuple[torch.Size, ...]

    @property
    def queries(self) -> int:
        """One query for each direction."""
        return len(self.directions)

    def chunk(self, start: int, stop: int) -> Directions:
        """Queries start to stop - 1, the length included."""
        return Directions(self.length * self.directions[start:stop])


@dataclass(frozen=True)
class ZOMuon(Estimator[Drawn]):
    """The subspace gradient of ZO-Muon, orthogonalised (Lang et al. 2026, arXiv 2602.17155).

    A weight matrix moves along P Psi_i, where P is a random matrix with r orthonormal columns, drawn anew
    every 100 steps, and Psi_i is Gaussian. The sum over the queries of the slopes times P Psi_i is a gradient
    G = U S V^T in that subspace; the step is U V^T over the singular values that are not zero. Vectors move
    along Gaussian directions, their step is along the sum. Four queries, 100 steps and a rank of 64 are those
    of the published code, for matrices of thousands of rows; here the rank is half of the rows, at most 64. A
    step's entries have the size of Adam's, so that the learning rates are comparable.

    Args:
        q: queries of a step.
        mu: smoothing parameter.
        stays: steps before P is drawn anew.
    """

    q: int = 4
    mu: float = 1e-3
    stays: int = 100

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """As many queries as there are directions, Q."""
        return self.q

    def plan(self, parameters: Parameters, key: Key) -> Drawn:
        """The directions, each in the subspace of its matrix."""
        old, pieces = key.at(key.step - key.step % self.stays), []
        for place, tensor in enumerate(parameters.tensors):
            generator = key.generator(FACTORS, place)
            if tensor.ndim < 2:
                pieces.append(torch.randn(self.q, tensor.numel(), generator=generator))
                continue
            rows, columns = tensor.flatten(1).shape
            rank = max(1, min(64, rows // 2))
            base = torch.linalg.qr(torch.randn(rows, rank, generator=old.generator(SUBSPACE, place))).Q
            pieces.append((base @ torch.randn(self.q, rank, columns, generator=generator)).flatten(1))
        directions = torch.cat(pieces, dim=1).to(parameters.dtype)
        return Drawn(directions, self.mu, tuple(tensor.shape for tensor in parameters.tensors))

    def reduce(self, planned: Drawn, differences: Tensor, valid: Tensor) -> Tensor:
        """The step, in the gradient's place."""
        slopes = torch.where(valid, differences / self.mu, 0.0).to(planned.directions.dtype)
        mean = slopes @ planned.directions
        pieces = mean.split([math.prod(shape) for shape in planned.shapes])
        steps = [
            orthogonalised(piece.reshape(shape[0], -1)).flatten() if len(shape) > 1 else piece
            for piece, shape in zip(pieces, planned.shapes, strict=True)
        ]
        sizes = [step.norm() / math.sqrt(step.numel()) for step in steps]
        pairs = zip(steps, sizes, strict=True)
        return torch.cat([step * (STEP / size) if size > 0 else step for step, size in pairs])


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, over the singular values that are not zero: the exact msign."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > 10 * torch.finfo(values.dtype).eps * max(matrix.shape) * values[0]
    return left[:, kept] @ right[kept]


@dataclass(frozen=True)
class Eggroll(Estimator[Drawn]):
    """The estimator of EGGROLL: evolution strategies whose perturbations are matrices of low rank.

    Sarkar et al. 2025, arXiv 2511.16652. A weight matrix moves along E = A B^T / sqrt(r), A and B Gaussian
    with r columns, a vector along a Gaussian vector; each with both signs, and the gradient is the mean of
    [l(W + sigma E) - l(W - sigma E)] / (2 sigma) E. The entries of E are uncorrelated with variance 1, so on
    a quadratic it is unbiased. r = 1 is the paper's; its populations are of thousands and more. Fitness is
    not normalised, which makes no difference to Adam.

    Args:
        pairs: of perturbations, one of each sign.
        sigma: standard deviation of a perturbation's entries.
        rank: of a perturbation.
    """

    pairs: int = 4
    sigma: float = 1e-3
    rank: int = 1

    def queries(self, parameters: Parameters, step: int = 0) -> int:
        """Two queries for each pair."""
        return 2 * self.pairs

    def plan(self, parameters: Parameters, key: Key) -> Drawn:
        """The perturbations, one of each sign in turn."""
        pieces = []
        for place, tensor in enumerate(parameters.tensors):
            generator = key.generator(FACTORS, place)
            if tensor.ndim < 2:
                pieces.append(torch.randn(self.pairs, tensor.numel(), generator=generator))
                continue
            left, right = (
                torch.randn(self.pairs, size, self.rank, generator=generator)
                for size in tensor.flatten(1).shape
            )
            pieces.append((left @ right.mT / math.sqrt(self.rank)).flatten(1))
        directions = torch.cat(pieces, dim=1).to(parameters.dtype).repeat_interleave(2, dim=0)
        directions[1::2] *= -1
        return Drawn(directions, self.sigma, tuple(tensor.shape for tensor in parameters.tensors))

    def reduce(self, planned: Drawn, differences: Tensor, valid: Tensor) -> Tensor:
        """The mean over the pairs that have both queries."""
        both = valid[0::2] & valid[1::2]
        slopes = (differences[0::2] - differences[1::2]) / (2 * self.sigma)
        slopes = torch.where(both, slopes, 0.0) / max(1, int(both.sum()))
        return slopes.to(planned.directions.dtype) @ planned.directions[0::2]


ENSEMBLE = 32  # particles
REDRAWN = 5  # steps between draws of the ensemble around its mean
DAMPING = 0.1  # of a Kalman step, in mean eigenvalues of the ensemble's covariance


class EnsembleKalman:
    """Ensemble Kalman inversion (Iglesias, Law and Stuart 2013) as Kovachki and Stuart (2019) train with it.

    Particles theta_j are evaluated on one batch; what the loss is a function of, the outputs of network and
    box at every call, is G_j. A particle moves by X^T w with w = -(c Y Y^T + lambda I)^-1 Y g_j: X and Y are
    the differences of theta and G to their means, g_j is the gradient of the loss for G_j, which is known,
    and c the loss's curvature along Y, so for squared errors this is the Kalman update with observation noise
    lambda / c / particles, and lambda damps it as in Iglesias (2016, arXiv 1505.03876). No derivative of box
    or network is used. The network gets the mean. Without more it would stay in the span of the first
    ensemble: every few steps the particles are drawn anew around their mean, one of the modifications that
    Kovachki and Stuart try.

    Args:
        problem: the problem; its objective calls network and box and looks at what they answer.
        network: that is trained.
        seed: of the draws.
        spread: standard deviation of the ensemble, in tenths of the root mean square of each tensor.
        particles: in the ensemble.
    """

    def __init__(
        self,
        problem: BenchmarkProblem,
        network: nn.Module,
        seed: int,
        spread: float = 1.0,
        particles: int = ENSEMBLE,
    ) -> None:
        self.problem, self.network, self.key = problem, network, Key(seed)
        self.spread, self.count, self.step = spread, particles, 0
        self.particles = torch.empty(0)

    @torch.no_grad()
    def backward(self, batch: Any) -> Tensor:
        """Move the ensemble; `.grad` is what is to be subtracted from the weights for its new mean."""
        parameters = Parameters(self.network)
        if self.step % REDRAWN == 0:
            self.particles = self._draw(parameters)
        self.step += 1
        evaluated = [self._evaluate(parameters.split(particle), batch) for particle in self.particles]
        kept = torch.tensor(
            [bool(g.isfinite().all() and slope.isfinite().all()) for g, slope, _ in evaluated]
        )
        outputs, slopes = (
            torch.stack(
                [outcome[place] for outcome, keep in zip(evaluated, kept, strict=True) if keep]
            ).double()
            for place in (0, 1)
        )
        weights = self.particles[kept].double()
        self.particles = (weights + kalman_step(weights, outputs, slopes)).float()
        parameters.add_to_grad(parameters.flat() - self.particles.mean(dim=0))
        return torch.stack([loss for _, _, loss in evaluated])[kept].mean()

    def _draw(self, parameters: Parameters) -> Tensor:
        """`(particles, size)` with the weights as their mean."""
        flat, generator = parameters.flat(), self.key.at(self.step).generator(PARTICLES)
        size = torch.cat(
            [tensor.detach().square().mean().sqrt().expand(tensor.numel()) for tensor in parameters.tensors]
        )
        noise = torch.randn(self.count, len(flat), generator=generator)
        return flat + 0.1 * self.spread * size * (noise - noise.mean(dim=0))

    def _evaluate(self, weights: list[Tensor], batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What network and box answer for some weights, the loss's gradient for that, and the loss."""
        leaves: list[Tensor] = []
        names = [name for name, _ in self.network.named_parameters()]

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return tuple(leaf(part) for part in value)
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]

        def network(*arrays: Tensor) -> Any:
            with torch.no_grad():
                return leaf(functional_call(self.network, dict(zip(names, weights, strict=True)), arrays))

        def solver(*arrays: Tensor) -> Any:
            return leaf(self.problem.box(*(array.detach() for array in arrays)))

        with torch.enable_grad():
            loss = self.problem.objective(solver)(Called(network), batch).nanmean()
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
        used = [(g, slope) for g, slope in zip(leaves, slopes, strict=True) if slope is not None]
        outputs, slope = (torch.cat([pair[place].detach().flatten() for pair in used]) for place in (0, 1))
        return outputs, slope, loss.detach()


class Called(nn.Module):
    """A module that is a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arrays: Tensor) -> Any:
        """What the function gives."""
        return self.function(*arrays)


def kalman_step(weights: Tensor, outputs: Tensor, slopes: Tensor) -> Tensor:
    """The steps of the particles, `(particles, size)`, from outputs and slopes `(particles, outputs)`.

    Zero where the particles or their outputs are all one: then they teach nothing, and a warning says so.
    """
    x, y, bend = (matrix - matrix.mean(dim=0) for matrix in (weights, outputs, slopes))
    rounding = 10 * torch.finfo(y.dtype).eps
    pairs = (x, weights), (y, outputs)
    if any(float(spread.abs().max()) <= rounding * float(of.abs().max()) for spread, of in pairs):
        warnings.warn(
            "Ensemble Kalman: expected particles and outputs that differ, got an ensemble that has "
            "collapsed, which teaches nothing: it stays. Start from a larger spread, or take more particles.",
            stacklevel=2,
        )
        return torch.zeros_like(weights)
    covariance = y @ y.T
    curvature = float((y * bend).sum() / covariance.trace().clamp(min=1e-300))
    curvature = max(curvature, 1e-300)  # a loss that bends the other way has no minimum to go to
    damping = DAMPING * curvature * covariance.trace() / len(y)
    system = curvature * covariance + damping * torch.eye(len(y), dtype=y.dtype)
    return -torch.linalg.solve(system, y @ slopes.T).T @ x
