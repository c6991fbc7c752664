"""Particles whose neighbours change from row to row: a learned network of pairs against autograd."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import zo
from blackbox import ArraySpec
from tests.oracles.test_value_tangents import cosine, learn, pairs_at, true_vjp
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import CallPairs

COUNT, MOST, CUTOFF = 16, 40, 1.0
SPECS = (ArraySpec("x", (COUNT, 2)), ArraySpec("v", (COUNT, 2)))
LIST = ArraySpec("neighbours", (MOST, 2), differentiable=False)
STIFF = ArraySpec("stiffness", (), differentiable=False)


def collide(x: torch.Tensor, v: torch.Tensor, pairs: torch.Tensor, stiffness: torch.Tensor):
    """Two steps of soft discs with friction in a bowl; listed pairs alone push each other."""
    both = torch.cat([pairs, pairs.flip(2)], 1).long()
    listed = (both[..., :1] >= 0).to(x)
    here, there = (both.clamp(min=0)[..., end, None].expand(-1, -1, 2) for end in (0, 1))
    for _ in range(2):
        d = x.gather(1, there) - x.gather(1, here)
        near = (1 - d.square().sum(2, keepdim=True) / CUTOFF**2).clamp(min=0) * listed
        force = -stiffness[:, None, None] * near * d
        v = v + 0.1 * (torch.zeros_like(v).scatter_add(1, here, force) - 0.3 * x - v)
        x = x + 0.1 * v
    return x, v


BOX = FromTorch(collide, (*SPECS, LIST, STIFF), SPECS)


def neighbours(x: torch.Tensor) -> torch.Tensor:
    """All pairs nearer than the cutoff, `(rows, MOST, 2)`, filled up with -1."""
    pairs = x.new_full((len(x), MOST, 2), -1.0)
    for row, distances in enumerate(torch.cdist(x, x)):
        near = torch.triu(distances < CUTOFF, 1).nonzero()[:MOST]
        pairs[row, : len(near)] = near.to(x)
    return pairs


def states(count: int, seed: int) -> list[torch.Tensor]:
    x, v = 1.2 * weights(count, COUNT, 2, seed=seed), 0.7 * weights(count, COUNT, 2, seed=100 + seed)
    return [x, v, neighbours(x), 6 + weights(count, seed=200 + seed)]


@cache
def learned() -> tuple[zo.tangents.PairTangent, CallPairs, torch.Tensor]:
    """A tangent, rows that it has not seen, and cotangents."""
    tangent = learner(zo.tangents.PairTangent, width=32, first_steps=200)
    for seed in range(3):
        learn(tangent, pairs_at(BOX, *states(16, seed)))
    pairs = pairs_at(BOX, *states(6, 50))
    return tangent, pairs, weights(*pairs.y.shape, seed=60)


@pytest.mark.slow
def test_pairs_that_each_row_lists_show_the_derivative_in_few_rows():
    """Of what is not the identity's; a perceptron has .04 there."""
    tangent, pairs, v = learned()
    counts = (states(6, 50)[2][..., 0] >= 0).sum(1)
    assert counts.min() < counts.max()
    exact = true_vjp(BOX, states(6, 50), v)
    alike = cosine(tangent.at(pairs).pull(v) - v, exact - v)
    assert alike > 0.85
    d = weights(*pairs.z.shape, seed=61)
    products = (tangent.at(pairs).push(d) * v).sum(), (d * tangent.at(pairs).pull(v)).sum()
    alike = torch.allclose(*products, rtol=1e-4)
    assert alike


@pytest.mark.slow
def test_neither_numbers_nor_the_order_of_the_list_make_a_difference():
    tangent, pairs, v = learned()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    place = order.argsort()  # of each particle in the new numbers
    x, v_of, listed, stiffness = states(6, 50)
    again = torch.where(listed >= 0, place[listed.long().clamp(min=0)].to(listed), -1.0)
    again = again.flip(1).flip(2)
    again[0, 0] = 3.0  # with itself: no pair
    pulled = tangent.at(pairs).pull(v)

    def turned(flat):
        return flat.reshape(6, 2, COUNT, 2)[:, :, order].flatten(1)

    other = tangent.at(pairs_at(BOX, x[:, order], v_of[:, order], again, stiffness)).pull(turned(v))
    apart = float((other - turned(pulled)).abs().max())
    assert apart < 1e-4 * float(pulled.abs().max())


def test_it_goes_on_where_its_state_was_taken():
    tangent = learner(zo.tangents.PairTangent, width=8, first_steps=3, steps_per_step=2)
    learn(tangent, pairs_at(BOX, *states(4, 0)))
    again = learner(zo.tangents.PairTangent, width=8, first_steps=3, steps_per_step=2)
    again.load_state_dict(tangent.state_dict())
    pairs = pairs_at(BOX, *states(4, 1))
    for each in (tangent, again):
        learn(each, pairs)
    v = weights(*pairs.y.shape)
    same = torch.equal(tangent.at(pairs).pull(v), again.at(pairs).pull(v))
    assert same


@pytest.mark.parametrize(
    ("inputs", "outputs", "settings", "words"),
    [
        (SPECS[:1], SPECS[:1], {}, ["lists neighbours", "GraphTangent"]),
        (
            (*SPECS[:1], LIST),
            (ArraySpec("y", (3, 2)),),
            {},
            ["as many particles in each", "zo.tangents.MLPTangent"],
        ),
        ((*SPECS[:1], LIST, ArraySpec("more", (5, 2), differentiable=False)), SPECS[:1], {}, ["list_of="]),
        ((*SPECS[:1], LIST), SPECS[:1], {"list_of": 1}, ["list_of="]),
    ],
)
def test_a_box_without_particles_or_a_list_is_refused(inputs, outputs, settings, words):
    def function(x, *others):
        return x[:, : outputs[0].shape[0]]

    box = FromTorch(function, inputs, outputs)
    with pytest.raises(zo.errors.ConfigurationError) as caught:
        learn(
            learner(zo.tangents.PairTangent, **settings),
            pairs_at(box, *(weights(3, *spec.shape) for spec in inputs)),
        )
    assert all(word in str(caught.value) for word in words)


def test_a_place_that_is_none_is_refused():
    with pytest.raises(zo.errors.ConfigurationError, match="place from 0 on"):
        zo.tangents.PairTangent(list_of=-1)


def test_a_number_that_neighbours_share_but_for_rounding_has_no_unit():
    """A mass, say, of .1 whose last bit differs: differences of it are no signal."""
    spreads = []
    for noise in (0.0, 1e-8):
        x, _, pairs, stiffness = (part.float() for part in states(8, 0))
        mass = 0.1 + noise * weights(8, COUNT, 2, seed=3).float()
        assert bool((mass == mass[0, 0, 0]).all()) is not noise
        tangent = learner(zo.tangents.PairTangent, width=4, first_steps=1)
        learn(tangent, pairs_at(BOX, x, mass, pairs, stiffness))
        spreads.append(tangent._network.get_buffer("spread"))
    assert spreads[0][2:].tolist() == spreads[1][2:].tolist() == [1.0, 1.0]
    assert torch.equal(spreads[0], spreads[1])
