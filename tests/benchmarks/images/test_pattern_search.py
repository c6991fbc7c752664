"""pattern-search: only what lowers the loss is kept, and the radius is halved when nothing does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks.images.pattern_search import PatternSearch
from tasks.applications.image_classification import ImageClassification, networks
from tests.tasks.applications.image_classification.small import striped

OBJECTIVE = ImageClassification.objective


class Point(nn.Module):
    """Two weights that the batch sees as they are."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([x, y], dtype=torch.float64))

    def forward(self, images):
        return self.at.expand(len(images), 2)


def bowl(network, batch):
    """A curved bowl with its minimum, zero, at (0.25, -0.75)."""
    x, y = (network(batch[0]) - torch.tensor([0.25, -0.75])).unbind(1)
    return (x - y) ** 2 + 0.1 * (x + y) ** 4


BATCH = (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_every_change_that_is_kept_lowers_the_loss_and_moves_one_weight_by_the_radius():
    network = networks.make("simple-730", 4, (1, 8, 8), width=3)
    part = striped(24)
    batch = (part.pixels / 127.5 - 1, part.labels)
    search = PatternSearch(network, OBJECTIVE, tries=1, radius=0.25)
    network.train()

    @torch.no_grad()
    def now():
        """Loss and weights."""
        loss = float(OBJECTIVE(network, batch).double().mean())
        return loss, nn.utils.parameters_to_vector(network.parameters()).clone()

    (before, weights), accepted = now(), 0
    for _ in range(80):
        search.backward(batch)
        loss, found = now()
        moved = torch.nonzero(found != weights).flatten()
        if search.accepted > accepted:
            assert loss < before
            assert len(moved) == 1
            torch.testing.assert_close(
                (found - weights)[moved].abs(), torch.tensor([0.25]), rtol=1e-4, atol=0
            )
        else:
            assert not len(moved) and loss == before
        weights, before, accepted = found, loss, search.accepted
    assert accepted >= 10
    assert search.counts.queries == 80
    assert all(tensor.grad is None for tensor in network.parameters())


@pytest.mark.slow
def test_it_finds_the_minimum_of_a_bowl_by_halving_its_radius():
    network = Point(2.0, 2.0)
    search = PatternSearch(network, bowl, tries=8)
    losses = [float(search.backward(BATCH)) for _ in range(100)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-4
    assert search.radius < 0.1


def test_at_a_minimum_nothing_is_kept_and_each_pass_halves_the_radius():
    network = Point(0.25, -0.75)
    search = PatternSearch(network, bowl, tries=12)  # three passes over two weights, up and down
    search.backward(BATCH)
    assert search.accepted == 0
    assert search.radius == 1 / 8
    assert network.at.tolist() == [0.25, -0.75]


def test_it_goes_on_where_its_state_was_taken():
    def searched(stop: int | None):
        network = Point(2.0, 1.0)
        search = PatternSearch(network, bowl, tries=3)
        for step in range(12):
            if step == stop:
                state, search = search.state_dict(), PatternSearch(network, bowl, tries=3)
                search.load_state_dict(state)
            search.backward(BATCH)
        return network.at.tolist(), search.state_dict()

    assert searched(5) == searched(None)


def test_a_step_is_the_greedy_search_by_hand():
    network, size = Point(2.0, 1.5), 0.5
    search = PatternSearch(network, bowl, tries=12, radius=size)
    order, at = search._order(), [2.0, 1.5]

    def height(point):
        x, y = point[0] - 0.25, point[1] + 0.75
        return (x - y) ** 2 + 0.1 * (x + y) ** 4

    kept = 0
    for change in order:
        tried = list(at)
        tried[change // 2] += size if change % 2 == 0 else -size
        if height(tried) < height(at):
            at, kept = tried, kept + 1
    search.backward(BATCH)
    assert 2 <= kept == search.accepted < 12
    assert network.at.tolist() == at


def test_running_statistics_are_those_of_one_forward_of_the_base():
    network = networks.make("simple-730", 4, (1, 8, 8), width=3)
    part = striped(24)
    batch = (part.pixels / 127.5 - 1, part.labels)
    other = copy.deepcopy(network)
    other(batch[0])
    PatternSearch(network, OBJECTIVE, tries=5, radius=0.25).backward(batch)
    for found, wanted in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
