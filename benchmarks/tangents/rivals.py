"""Rivals that move the weights and look at what comes out: ZO-Muon and EGGROLL."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zo.draws import Key
from zo.estimators.estimator import Estimator
from zo.parameters import Parameters
from zo.perturbation import Directions, Perturbations

SUBSPACE, FACTORS = 111, 112  # first words of the keys' paths for these draws
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
