"""`SharedRows`: calls of a box that several processes make in the same way are paid once.

Four processes are started once, on 127.0.0.1 with gloo; they do all that is in `CASES`.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction, Budgeted
from blackbox.errors import BudgetError
from tests.zo.ranks import SIZES, Chancy, results_by_rank
from zo.execution.memory import measured

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning"),  # a row of a batch is not finite
]
ROWS, STEPS, MU = 7, 3, 1e-3


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8).eval(), nn.Tanh(), nn.Linear(8, 4))


def batch_of(step):
    draws = torch.Generator().manual_seed(step)
    batch = torch.randn(ROWS, 4, generator=draws), torch.randn(ROWS, 4, generator=draws)
    batch[0][step % ROWS] = torch.nan if step == 1 else batch[0][step % ROWS]
    return batch


def through(box):
    def objective(network, batch):
        return (box(batch[0] + network(batch[0].nan_to_num())) - batch[1]).square().mean(dim=1)

    return objective


def gradient_of(network, box, group, **settings):
    chosen = {"evaluator": "stacked", "chunk": 9, "max_dropped": 0.9, **settings}
    return zo.LossGradient(network, through(box), zo.CGE(MU), process_group=group, **chosen)


def train(group, share=True, **settings):
    torch.set_num_threads(1)
    network, inner = make_network(), Chancy()
    gradient = gradient_of(
        network, zo.execution.SharedRows(inner, group) if share else inner, group, **settings
    )
    torch.manual_seed(7)
    for step in range(STEPS):
        network.zero_grad()
        gradient.backward(batch_of(step))
        with torch.no_grad():
            for tensor in network.parameters():
                tensor -= 0.1 * tensor.grad
    return {
        "weights": torch.cat([value.flatten().double() for value in network.state_dict().values()]),
        "rows": inner.ledger.rows_asked,
    }


# What the processes do


def shared(groups):
    """Calls that all make alike, in blocks of three rows and by the first alone; and gradients."""
    results = {}
    for size in SIZES[1:]:
        if groups[size] is None:
            continue
        for block in (None, 3):
            inner = Chancy()
            box = zo.execution.SharedRows(inner, groups[size], block)
            first = box(batch_of(1)[0].unflatten(0, (7, 1)))
            second = box(batch_of(2)[0].double().numpy())
            results["calls", size, block] = first, second, inner.ledger.rows_asked, inner.ledger.rows_run
        results["trained", size] = train(groups[size])
        results["alone", size] = train(groups[size], first_alone=True)
        box = Chancy()
        around = zo.differentiable(zo.execution.SharedRows(box, groups[size]), zo.RGE(MU, 3), seed=0)
        network = make_network()
        torch.manual_seed(7)
        batch = batch_of(0)
        (around(network(batch[0])) - batch[1]).nan_to_num().square().mean().backward()
        results["around", size] = (
            [tensor.grad.clone() for tensor in network.parameters()],
            box.ledger.rows_asked,
        )
        results["tangent", size] = tangent(groups[size])
    return results


def tangent(group, process_group=None):
    """Two steps with a learned tangent of a box that all ask alike."""
    torch.set_num_threads(1)
    box, network = Chancy(), make_network()
    shared_box = zo.execution.SharedRows(box, group)
    made = zo.TangentGradient(
        network,
        through(shared_box),
        boxes=[shared_box],
        process_group=process_group,
    )
    torch.manual_seed(7)
    for step in (0, 2):
        made.backward(batch_of(step))
    return [tensor.grad for tensor in network.parameters()], box.ledger.rows_asked


def error_of(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError("no error")


class BreaksOn(Chancy):
    """Raises on one rank."""

    def __init__(self, rank):
        super().__init__()
        self.failures = "raise"
        self.rank = rank

    def evaluate_rows(self, x):
        if dist.get_rank() == self.rank:
            raise OSError("the disk is full")
        return super().evaluate_rows(x)


def failing(groups):
    group, x = groups[4], torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    results = {"other": error_of(lambda: zo.execution.SharedRows(Chancy(), group)(x + (groups["rank"] == 2)))}
    spent = Budgeted(Chancy(), rows=5)
    results["budget"] = error_of(lambda: zo.execution.SharedRows(spent, group)(x)), spent.ledger.rows_run
    results["broken"] = error_of(lambda: zo.execution.SharedRows(BreaksOn(1), group, 2)(x))
    results["after"] = zo.execution.SharedRows(Chancy(), group, 2)(x)
    return {"failing": results}


def failing_before_rows(groups):
    """Of two processes one fails where the other waits for its part of the base's rows."""
    group = groups["short"]
    if group is None:
        return {}
    box = zo.execution.SharedRows(Chancy(), group)

    def objective(network, batch):
        if groups["rank"] == 1:
            raise MemoryError("no memory left on this device")
        return box(network(batch[0])).square().mean(1)

    gradient = zo.LossGradient(make_network(), objective, zo.CGE(MU), process_group=group, evaluator="loop")
    torch.manual_seed(4)
    return {"failing before rows": error_of(lambda: gradient.backward(batch_of(0)))}


CASES = (shared, failing, failing_before_rows)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """By rank, what the cases gave."""
    return results_by_rank(CASES, tmp_path_factory.mktemp("ranks"))


# Calls of a box


@pytest.mark.slow
@pytest.mark.parametrize("block", [None, 3])
def test_calls_that_all_make_are_answered_once_and_as_by_the_box(block, by_rank):
    box = Chancy()
    first, second = box(batch_of(1)[0].unflatten(0, (7, 1))), box(batch_of(2)[0].double().numpy())
    for size in SIZES[1:]:
        asked, ran = 0, 0
        for rank in range(size):
            one, two, asked_here, ran_here = by_rank[rank]["calls", size, block]
            assert torch.equal(one.nan_to_num(), first.nan_to_num()) and one.shape == first.shape
            assert (two == second).all() and two.dtype == second.dtype
            asked, ran = asked + asked_here, ran + ran_here
            assert asked_here > 0 if block and rank < 3 else (asked_here == 0) == (rank > 0)
        assert (asked, ran) == (13, 13)  # a row that was dead already is not sent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trained", "alone"])
def test_a_shared_gradient_pays_for_base_and_queries_once(kind, by_rank):
    alone = train(None)
    assert torch.equal(alone["weights"], train(None, share=False)["weights"])
    for size in SIZES[1:]:
        runs = [by_rank[rank][kind, size] for rank in range(size)]
        assert all(torch.equal(run["weights"], alone["weights"]) for run in runs)
        assert sum(run["rows"] for run in runs) == alone["rows"]
        assert [run["rows"] > 0 for run in runs] == [rank == 0 or kind == "trained" for rank in range(size)]


@pytest.mark.slow
def test_queries_in_backward_are_paid_once(by_rank):
    box, network, batch = Chancy(), make_network(), batch_of(0)
    around = zo.differentiable(box, zo.RGE(MU, 3), seed=0)
    torch.manual_seed(7)
    (around(network(batch[0])) - batch[1]).nan_to_num().square().mean().backward()
    for size in SIZES[1:]:
        assert sum(by_rank[rank]["around", size][1] for rank in range(size)) == box.ledger.rows_asked
        for rank in range(size):
            pairs = zip(by_rank[rank]["around", size][0], network.parameters(), strict=True)
            assert all(torch.equal(grad, tensor.grad) for grad, tensor in pairs)


@pytest.mark.slow
def test_rows_of_a_tangent_are_paid_once(by_rank):
    grads, rows = tangent(None)
    for size in SIZES[1:]:
        assert sum(by_rank[rank]["tangent", size][1] for rank in range(size)) == rows
        for rank in range(size):
            assert all(map(torch.equal, by_rank[rank]["tangent", size][0], grads))


def test_a_budget_around_it_bounds_the_rows_that_are_requested():
    box = Chancy()
    spent = Budgeted(zo.execution.SharedRows(box, None, 3), rows=10)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    spent(x)
    with pytest.raises(BudgetError, match="at most 3 rows, got one of 7"):
        spent(x)
    assert box.ledger.rows_run == spent.ledger.rows_run == 7 and spent.rows_left == 3


def test_a_process_alone_with_blocks_gives_its_box_blocks():
    sizes = []

    class Noted(Chancy):
        def evaluate_rows(self, x):
            sizes.append(len(x))
            return super().evaluate_rows(x)

    box = zo.execution.SharedRows(Noted(), None, 3)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(box(x).nan_to_num(), Chancy()(x).nan_to_num())
    assert sizes == [3, 3, 1] and repr(box) == "Noted"


# What is told to all


def test_blocks_take_no_more_memory_than_the_first_of_them():
    """Chunks follow from the peak, which must not depend on how many blocks a process answers."""

    class Wide(BlackBoxFunction):
        inputs, outputs = (ArraySpec("x", (4,)),), (ArraySpec("y", (4096,)),)
        arrays = "torch"

        def evaluate_rows(self, x):
            return x.repeat(1, 1024)

    peaks = []
    for rows in (2, 8):
        with measured(True) as peak:
            answers = zo.execution.SharedRows(Wide(), None, 2)(torch.ones(rows, 4))
            peaks.append(peak.peak - 4096 * answers.element_size() * rows)
    one_block = 2 * 4096 * 4
    assert peaks[1] - peaks[0] < one_block / 2


@pytest.mark.slow
def test_ranks_that_ask_for_something_else_are_named(by_rank):
    for results in by_rank:
        kind, words = results["failing"]["other"]
        assert kind == "RanksError" and "ask for the same rows, got others on rank 2" in words


@pytest.mark.slow
def test_what_the_box_raises_on_one_rank_is_raised_on_all(by_rank):
    for rank, results in enumerate(by_rank):
        (kind, words), ran = results["failing"]["budget"]
        assert kind == BudgetError.__name__ and "at most 5 rows" in words and ran == 0
        kind, words = results["failing"]["broken"]
        assert kind == ("RowFailedError") and "the disk is full" in words, (rank, kind, words)


@pytest.mark.slow
def test_the_group_serves_again_after_failures(by_rank):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    for results in by_rank:
        assert torch.equal(results["failing"]["after"].nan_to_num(), Chancy()(x).nan_to_num())


@pytest.mark.slow
def test_a_rank_that_fails_while_another_waits_for_its_rows_says_why_and_the_other_ends(by_rank):
    (kind, words), (other, reason) = (by_rank[rank]["failing before rows"] for rank in (0, 1))
    assert kind == other == "RanksError"
    assert "expected an answer of all 2 ranks" in words
    assert "RanksError: Call 1: rank 0 expected" in words  # the box knows of no step
    assert "rank 1 failed: MemoryError: no memory left on this device" in reason
