"""Shares of chunks: all dealt once, of equal cost; and costs of layers found from those of chunks."""

import math
import random

import pytest
import torch
from torch import nn
from zo.distributed.shares import MANY, SMALLEST, Costs, compositions, dealt, even_chunk

import zo

TRUE = {0: 1.0, 1: 0.2, 2: 0.01}  # seconds of a query: a hundredth in the last layer


def seconds(composition):
    return sum(count * TRUE[layer] for layer, count in composition.items())


def chunks_of(counts, chunk):
    """The compositions of the chunks of layers with so many queries each, in their order."""
    layers = [layer for layer, count in enumerate(counts) for _ in range(count)]
    parts = [layers[start : start + chunk] for start in range(0, len(layers), chunk)]
    return [{layer: part.count(layer) for layer in sorted(set(part))} for part in parts]


def learned(composed, numbers=None):
    costs = Costs()
    costs.learn([(composed[n], seconds(composed[n])) for n in numbers or range(len(composed))])
    return costs


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("known", [True, False])
def test_every_chunk_is_dealt_once(size, known):
    composed = chunks_of((37, 110, 64), 8)
    numbers = list(range(1, len(composed)))
    shares = dealt(numbers, composed, learned(composed) if known else Costs(), size)
    assert len(shares) == size and sorted(number for share in shares for number in share) == numbers
    assert all(share == sorted(share) for share in shares)


def test_costs_of_layers_come_out_of_chunks_that_mix_them():
    composed = chunks_of((37, 110, 64), 8)  # two chunks hold two layers
    assert sum(len(composition) == 2 for composition in composed) == 2
    costs = learned(composed)
    for layer, true in TRUE.items():
        assert costs.seconds[layer] == pytest.approx(true, rel=1e-6)


def test_a_layer_that_was_not_measured_costs_what_its_neighbour_does():
    composed = chunks_of((16, 16, 16), 8)
    costs = learned(composed, [0, 1, 4, 5])
    assert costs.of({1: 3}) == pytest.approx(3 * TRUE[0])


@pytest.mark.parametrize("size", [2, 3, 8])
def test_shares_cost_at_most_four_thirds_of_the_best(size):
    draw = random.Random(0)
    for _ in range(20):
        composed = chunks_of([draw.randrange(1, 90) for _ in TRUE], 8)
        shares = dealt(range(len(composed)), composed, learned(composed), size)
        loads = [math.fsum(seconds(composed[number]) for number in share) for share in shares]
        each = [seconds(composition) for composition in composed]
        best = max(math.fsum(each) / size, max(each))  # no deal can be better
        if len(each) > size:  # then two of them share a rank
            ordered = sorted(each, reverse=True)
            best = max(best, ordered[size - 1] + ordered[size])
        assert max(loads) <= 4 / 3 * best * (1 + 1e-3)


def test_before_anything_is_measured_rank_0_gets_a_chunk_of_each_layer_and_no_more_than_others():
    composed = chunks_of((24, 400, 24), 8)
    shares = dealt(range(len(composed)), composed, Costs(), 4)
    assert {layer for number in shares[0] for layer in composed[number]} == {0, 1, 2}
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_costs_are_recorded_and_measured_twice():
    composed = chunks_of((8, 8, 8), 4)
    costs = learned(composed)
    assert not costs.known
    costs.learn([(composed[0], 1.0)])
    assert costs.known
    other = Costs()
    other.load_state_dict(costs.state_dict())
    assert other.seconds == costs.seconds and other.known


def test_compositions_follow_coordinates_and_know_directions():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))  # 12, 4, 4 and 1 weights
    parameters, key = zo.Parameters(network), zo.Key(0)
    plan = zo.CGE(1e-3, central=True).plan(parameters, key)
    found = compositions(plan, parameters, 10)
    assert found == [{0: 10}, {0: 2, 1: 4, 2: 4}, {0: 9, 3: 1}, {0: 3, 1: 4, 2: 3}, {2: 1, 3: 1}]
    directions = zo.RGE(1e-3, 7).plan(parameters, key)
    assert compositions(directions, parameters, 4) == [{-1: 4}, {-1: 3}]
    hybrid = zo.Hybrid(zo.CGE(1e-3, zo.FixedCoordinates(torch.tensor([12, 20]))), zo.RGE(1e-3, 3))
    assert compositions(hybrid.plan(parameters, key), parameters, 3) == [{-1: 1, 1: 1, 3: 1}, {-1: 2}]


def test_of_unequal_queries_there_are_more_chunks_but_none_below_the_smallest():
    assert even_chunk(370, 128, unequal=True) == -(-370 // MANY) < even_chunk(370, 128)
    assert even_chunk(96, 128, unequal=True) == even_chunk(20, 128, unequal=True) == SMALLEST
    assert even_chunk(5000, 128, unequal=True) == even_chunk(5000, 128)


@pytest.mark.parametrize(
    ("queries", "most", "chunks"),
    [(96, 120, 2), (96, 40, 4), (300, 120, 4), (418, 128, 4), (32, 128, 2), (20, 128, 1), (31, 16, 2)],
)
def test_chunks_of_a_step_are_even_in_size_and_number(queries, most, chunks):
    chunk = even_chunk(queries, most)
    assert -(-queries // chunk) == chunks
    assert chunk <= most
    if chunk < most:
        assert chunk >= SMALLEST and chunk - (queries - (chunks - 1) * chunk) < chunks
