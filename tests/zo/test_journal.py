"""What a journal keeps: what failed in an outage is asked again, and another step's numbers never serve."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import zo

CHUNK = 5


class Killed(BaseException):
    pass


class Notebook(dict):
    """A journal in memory, whose process is killed after some pieces."""

    def __init__(self, most=1000):
        super().__init__()
        self.most, self.found = most, []

    def get(self, key):
        self.found += [key] if key in self else []
        return super().get(key)

    def put(self, key, value):
        self[key] = dict(value)
        if sum(" piece " in known for known in self) == self.most:
            raise Killed


def losing(lost):
    """An objective whose queries of some weights, by their numbers, fail at the steps of mu."""

    def objective(network, batch):
        losses = network(batch).square().mean(dim=1)
        moved = torch.cat([p.detach().flatten() for p in network.parameters()]) - FLAT
        if moved.count_nonzero() == 1 and moved.abs().max() < 5e-3 and int(moved.nonzero()) in lost:
            losses[0] = torch.nan
        return losses

    return objective


def make_network():
    torch.manual_seed(0)
    return nn.Linear(4, 4)  # 20 weights: four pieces


FLAT = torch.cat([p.detach().flatten() for p in make_network().parameters()])


def step(objective, journal, batch=None, **settings):
    """The gradient of one step by a new object, and its counts."""
    network, settings = make_network(), {"evaluator": "loop", "chunk": CHUNK, **settings}
    gradient = zo.LossGradient(
        network, objective(network) if batch is None else objective, zo.CGE(1e-3), **settings
    )
    gradient.journal = journal
    gradient.backward(batch)
    return torch.cat([p.grad.flatten() for p in network.parameters()]), gradient.counts


BATCH = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def test_a_piece_that_an_outage_took_is_evaluated_again():
    truth, journal = step(losing(()), None, BATCH)[0], Notebook()
    with pytest.raises(zo.errors.FailedQueriesError, match="5 did"):
        step(losing({5, 6, 7, 8, 9}), journal, BATCH)
    assert torch.equal(step(losing(()), journal, BATCH)[0], truth)
    assert sum(" piece " in key for key in journal.found) == 3  # the others are not evaluated again


def test_a_query_that_failed_by_itself_stays_failed_so_that_the_bits_are_the_same():
    journal, settings = Notebook(most=2), {"max_dropped": 0.2}
    undisturbed, counts = step(losing({7}), None, BATCH, **settings)
    with pytest.raises(Killed):
        step(losing({7}), journal, BATCH, **settings)
    journal.most = 1000
    grad, again = step(losing(()), journal, BATCH, **settings)  # it would not fail a second time
    assert torch.equal(grad, undisturbed) and again == counts
    assert again.dropped == 1 and grad[7] == 0


def test_a_closure_with_another_batch_is_another_step():
    def of(batch):
        return lambda network: lambda: network(batch).square().mean(dim=1)

    journal = Notebook()
    first = step(of(BATCH), journal)[0]
    assert not torch.equal(step(of(BATCH.flip(0).mul(2)), journal)[0], first) and not journal.found
    assert torch.equal(step(of(BATCH), journal)[0], first) and journal.found


def test_numbers_of_queries_that_wrote_to_weights_are_not_kept():
    journal = Notebook()

    def writing(network, batch):
        moved = (network.weight.detach().flatten() - FLAT[:16]).abs()
        if 0 < moved[14] < 5e-3 and moved.count_nonzero() == 1:
            network.bias.data += 1.0
        return network(batch).square().mean(dim=1)

    for _ in range(2):
        with pytest.raises(zo.errors.ObjectiveError, match="in a query and not in the base"):
            step(writing, journal, BATCH, parameters="weight")


@pytest.mark.needs("gpu")
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.RGE(1e-3, q=8)], ids=["cge", "rge"])
def test_what_was_kept_in_the_memory_of_a_cpu_serves_on_a_gpu(estimator):
    def take(journal):
        network = make_network().cuda()
        gradient = zo.LossGradient(network, losing(()), estimator, chunk=CHUNK)
        gradient.journal = journal
        gradient.backward(BATCH.cuda())
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    class OnCPU(Notebook):
        def put(self, key, value):
            super().put(key, {**value, "numbers": value["numbers"].cpu()})

    global FLAT
    FLAT, before, journal = FLAT.cuda(), FLAT, OnCPU()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first = take(journal)
            assert torch.equal(take(journal), first) and journal.found
    finally:
        FLAT = before
