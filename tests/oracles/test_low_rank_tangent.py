"""`LowRankTangent` against ridge least squares for a full matrix."""

from __future__ import annotations

import pytest
import torch

import zo
from tests.oracles.test_tangents import bent, pairs_of
from tests.zo.row_boxes import weights
from zo.tangents import CallPairs
from zo.tangents.record.pairs import all_listed


class FullRidge:
    """(G + ridge)^-1 of all numbers, as the textbook has it."""

    def __init__(self, size: int, forgetting: float, ridge: float) -> None:
        self.gram = torch.zeros(size, size).double()
        self.cross = torch.zeros(size, size).double()
        self.forgetting, self.ridge = forgetting, ridge

    def add(self, d: torch.Tensor, residuals: torch.Tensor) -> None:
        self.gram = self.forgetting * self.gram + d.T @ d
        self.cross = self.forgetting * self.cross + d.T @ residuals

    def vjp(self, v: torch.Tensor) -> torch.Tensor:
        """What is beyond the prior."""
        ridged = self.gram + self.ridge * torch.eye(len(self.gram)).double()
        return (torch.linalg.inv(ridged) @ self.cross @ v.T).T


def shaped_pairs(size: int, spectrum: torch.Tensor, seed: int, matrix: torch.Tensor) -> CallPairs:
    """Pairs of z -> z + matrix z; changes fill a fixed space of as many dimensions as the spectrum has."""
    space = torch.linalg.qr(weights(size, len(spectrum), seed=99))[0]
    d = (weights(4 * 3, len(spectrum), seed=seed) * spectrum) @ space.T
    drawn = pairs_of(lambda z: z + z @ matrix, (size,), probes=4, rows=3, seed=seed)
    d = d.reshape(4, 3, size)
    return CallPairs(drawn.inputs, drawn.outputs, drawn.z, d, d + d @ matrix, drawn.valid)


@pytest.mark.parametrize("rank", [30, 1000])
def test_it_is_weighted_ridge_least_squares(rank):
    tangent, full = zo.LowRankTangent(rank=rank, forgetting=0.7, ridge=0.1), FullRidge(30, 0.7, 0.1)
    for seed in range(5):
        seen = all_listed([pairs_of(bent, (30,), seed=seed)])  # 6 pairs of 30 numbers
        tangent.see(seen)
        tangent.learn()
        full.add(seen.d[0], seen.response[0] - seen.d[0])
        pairs, v = pairs_of(bent, (30,), seed=9), weights(2, 30, seed=7)
        assert torch.allclose(tangent.at(pairs).pull(v), v + full.vjp(v), atol=1e-10)


def test_changes_in_a_small_space_need_no_more_than_its_rank():
    matrix = weights(200, 200, seed=1) / 14
    tangent, full = zo.LowRankTangent(rank=16, ridge=1e-3), FullRidge(200, 0.98, 1e-3)
    for seed in range(20):
        seen = all_listed([shaped_pairs(200, torch.ones(12).double(), seed, matrix)])
        tangent.see(seen)
        tangent.learn()
        full.add(seen.d[0], seen.response[0] - seen.d[0])
    assert tangent.state_dict()["kept"][0].shape == (12, 200)
    pairs, v = pairs_of(lambda z: z, (200,), seed=9), weights(2, 200, seed=7)
    assert torch.allclose(tangent.at(pairs).pull(v), v + full.vjp(v), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_more_directions_than_fit_those_seen_most_are_kept(dtype):
    """Of a falling spectrum the head is found: new changes are answered to within its tail."""
    matrix = weights(120, 120, seed=1) / 11
    spectrum = 0.8 ** torch.arange(100).double()
    tangent = zo.LowRankTangent(rank=24)
    for seed in range(40):
        seen = all_listed([shaped_pairs(120, spectrum, seed, matrix)])
        rounded = (tensor.to(dtype) for tensor in (seen.z, seen.d, seen.response))
        tangent.see(CallPairs(seen.inputs, seen.outputs, *rounded, seen.valid))
        tangent.learn()
        basis = tangent.state_dict()["kept"][0].double()
        assert len(basis) <= 37
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis)).double(), atol=1e-5)
    new = all_listed([shaped_pairs(120, spectrum, 1000, matrix)])
    wanted = new.response[0] - new.d[0]
    response = tangent.at(new).push(new.d.to(dtype))[0].double() - new.d[0]
    assert (response - wanted).norm() < 0.02 * wanted.norm()


def test_it_is_adjoint_after_its_rank_was_lowered():
    tangent = zo.LowRankTangent(rank=10)
    for seed in range(6):
        tangent.see(pairs_of(bent, (40,), seed=seed))
        tangent.learn()
    pairs, v = pairs_of(bent, (40,), seed=9), weights(2, 40, seed=7)
    d = pairs.d[:1]
    left, right = (tangent.at(pairs).push(d)[0] * v).sum(), (d[0] * tangent.at(pairs).pull(v)).sum()
    assert abs(left - right) < 1e-12 * abs(left)


def test_a_loaded_state_goes_on_to_the_same_bits():
    first, second = zo.LowRankTangent(rank=10), zo.LowRankTangent(rank=10)
    for seed in range(6):
        first.see(pairs_of(bent, (40,), seed=seed))
        first.learn()
    second.load_state_dict(first.state_dict())
    for seed in range(6, 12):
        for tangent in (first, second):
            tangent.see(pairs_of(bent, (40,), seed=seed))
            tangent.learn()
    pairs, v = pairs_of(bent, (40,), seed=20), weights(2, 40, seed=7)
    assert torch.equal(first.at(pairs).pull(v), second.at(pairs).pull(v))
